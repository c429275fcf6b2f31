"""The words of a command line that mean the data of given settings, however these were typed: by an experiment, a resumed
run, or in Python.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import cast

from hydra.core.global_hydra import GlobalHydra

from imgclf.cli.compose import CONF, compose_config
from imgclf.cli.python_call import literal
from imgclf.config import CheckConfig, DatasetConfig
from imgclf.console import shell_joined
from imgclf.errors import ConfigError

__all__ = ["check_commands", "config_folder", "word_of"]

# What decides which files are in which split.
_FIELDS = ("name", "splits", "classes", "holdout", "val_fraction", "test_fraction", "split_seed", "fraction")


def config_folder(words: Sequence[str]) -> list[str]:
    """Return `--config-dir` with its folder, if it is among the words of a command line."""
    separate = [word for text in words for word in (text.split("=", 1) if text.startswith("--config-dir=") else [text])]
    return next(([flag, folder] for flag, folder in pairwise(separate) if flag in ("--config-dir", "-cd")), [])


def check_commands(dataset: DatasetConfig, data_dir: str | None, seed: int) -> tuple[str, str]:
    """Return the command that checks these data, and the override that trains without what it finds, to be copied as they are."""
    flags = config_folder(sys.argv)
    place = f"outputs/check_{re.sub(r'[^A-Za-z0-9_-]+', '_', dataset.name)}"
    words = _choice(dataset, flags)
    if data_dir:
        near = Path(data_dir).is_relative_to(Path.cwd())
        words.append(word_of("data_dir", str(Path(data_dir).relative_to(Path.cwd())) if near else data_dir))
    if dataset.fraction < 1 and seed:
        words.append(f"seed={seed}")
    if isinstance(dataset.exclude, str):
        words.append(word_of("dataset.exclude", dataset.exclude))
    words = ["imgclf", "check", *flags, *words, f"hydra.run.dir={place}"]
    return shell_joined(words), f"dataset.exclude={place}/check.json"


def _choice(dataset: DatasetConfig, flags: Sequence[str]) -> list[str]:
    """Return the choice of the group `dataset` with the same layout that is nearest, and what differs from it."""
    folders = [Path(folder) for folder in flags[1:]]
    search = [f"hydra.searchpath=[{folder.absolute().as_uri()}]" for folder in folders]
    names = [path.stem for folder in (*folders, CONF) for path in sorted((folder / "dataset").glob("*.yaml"))]
    layout = [word_of(f"dataset.splits.{split}", value) for split, value in dataset.to_dict()["splits"].items()]
    found = [["dataset=base", *layout, *_differing(dataset, DatasetConfig(splits=dataset.splits))]]
    for name in sorted(dict.fromkeys(names), key=lambda name: name != dataset.name):
        try:
            with _outside_hydra():
                known = cast(CheckConfig, compose_config("check", [*search, f"dataset={name}"])).dataset
        except ConfigError:
            continue
        if known.splits == dataset.splits:
            found.append([word_of("dataset", name), *_differing(dataset, known)])
        if len(found[-1]) == 1:
            break
    return min(found, key=len)


@contextmanager
def _outside_hydra() -> Iterator[None]:
    """Let settings be composed inside a command's task too, which Hydra refuses."""
    state = GlobalHydra.instance()
    running, state.hydra = state.hydra, None
    try:
        yield
    finally:
        state.hydra = running


def _differing(dataset: DatasetConfig, known: DatasetConfig) -> list[str]:
    values = {name: getattr(dataset, name) for name in _FIELDS}
    return [word_of(f"dataset.{name}", value) for name, value in values.items() if value != getattr(known, name)]


def word_of(key: str, value: object) -> str:
    """Return `key=value` as one word of a command line, without the shell's quotes."""
    plain = isinstance(value, str) and re.fullmatch(
        r"(?!(true|false|null|nan|inf)$)[A-Za-z_/][\w./+-]*", value, re.I | re.A
    )
    return f"{key}={value if plain else literal(value)}"
