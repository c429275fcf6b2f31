"""A command called in Python: the words and keywords of `imgclf.train("dataset=cards", seed=1)`, composed by Hydra."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import cast

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from imgclf.cli.compose import CONF, check_overrides, explain_error, to_settings
from imgclf.cli.resolvers import new_stamp
from imgclf.config import RunConfig
from imgclf.errors import ConfigError
from imgclf.schema import quoted

__all__ = ["compose_run", "literal"]


def compose_run(words: Sequence[str], settings: Mapping[str, object]) -> tuple[RunConfig, Path, list[str]]:
    """Return the settings, the run folder and the overrides that `imgclf train <words> <key=value of settings>` has.

    Each call has a run folder of its own, unless `hydra.run.dir=` names one. Raises `ConfigError` in one line.
    """
    for word in words:
        if not isinstance(word, str) or word.startswith("-") or not ("=" in word or word.startswith("~")):
            raise ConfigError(
                f"imgclf.train({word!r}): expected words such as 'dataset=cards'; sweeps (-m) and other flags are for "
                "the command line"
            )
    overrides = check_overrides("train", [*words, *(f"{key}={literal(value)}" for key, value in settings.items())])
    new_stamp()
    try:
        with hydra.initialize_config_dir(str(CONF.absolute()), version_base="1.3"):
            composed = hydra.compose("train", overrides, return_hydra_config=True)
        folder = Path(composed.hydra.run.dir).expanduser().absolute()
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain_error("train", error)) from None
    OmegaConf.set_readonly(composed, False)  # Hydra makes the whole read-only when its own part is asked for
    with open_dict(composed):
        del composed["hydra"]
    config = cast(RunConfig, to_settings("train", composed))
    return config, folder, [word for word in overrides if not re.match(r"\+*hydra[./]", word)]


def literal(value: object) -> str:
    """Return a value as Hydra's grammar writes it; numpy's numbers and arrays count as numbers and lists."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (str, PurePath)):
        return quoted(str(value))
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_literal_key(key)}:{literal(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(literal, value)) + "]"
    raise ConfigError(f"{value!r}: expected a number, a text, a path, a list or None as the value of a setting")


def _literal_key(key: object) -> str:
    """Return the key of a mapping as Hydra's grammar writes it, which has no quotes for keys."""
    written = re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", str(key))
    try:
        read = OverridesParser.create().parse_override(f"x={{{written}:0}}").value()
    except HydraException:
        read = None
    if not isinstance(read, dict) or list(map(str, read)) != [str(key)]:  # 1e3, null, or a quote
        raise ConfigError(f"{key!r}: can't be a key of a mapping given as a keyword; write it into a YAML file")
    return written
