"""Settings from a command line: Hydra composes `conf/` against the dataclasses of `imgclf.config`.

Nothing here loads torch, so that `--help` and a wrong override answer at once.
"""

import re
import shutil
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import MISSING, field, fields, make_dataclass
from difflib import get_close_matches
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, cast, get_args, get_origin

import hydra
import yaml
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from imgclf.cli.resolvers import register_resolvers
from imgclf.config import (
    KNOWN,
    CheckConfig,
    DatasetConfig,
    DownloadConfig,
    EvaluateConfig,
    ModelConfig,
    RunConfig,
    TrainerConfig,
)
from imgclf.errors import ConfigError, ImgclfError, install_hint, nearest, require_value
from imgclf.schema import Settings, default_of, flatten, group_of, quoted

__all__ = ["CONF", "FLAGS_WITH_VALUE", "check_overrides", "compose_config", "explain_error", "help_text", "to_settings"]

_PACKAGED = (
    Path(__file__).parents[1] / "conf"
)  # in a wheel the folder lies inside the package, in a checkout next to it
CONF = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "conf"
COMMANDS: dict[str, type[Settings]] = {
    "train": RunConfig,
    "evaluate": EvaluateConfig,
    "check": CheckConfig,
    "download": DownloadConfig,
}
_GROUPS: dict[str, type[Settings]] = {"dataset": DatasetConfig, "model": ModelConfig, "trainer": TrainerConfig}
_PLUGINS = ("optuna", "ray", "submitit")  # of Hydra; each is an extra of imgclf of the same name
_FLAGS = (  # of Hydra; those that an argument may follow are in FLAGS_WITH_VALUE
    *("--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m"),
    *(_MAY_TAKE_A_WORD := ("--shell-completion", "-sc", "--info", "-i", "--experimental-rerun")),
)
FLAGS_WITH_VALUE = (
    "--config-dir",
    "-cd",
    "--config-name",
    "-cn",
    "--config-path",
    "-cp",
    "--package",
    "-p",
    "--cfg",
    "-c",
)
_HELP_COLUMN = 34


def compose_config(command: str, overrides: Sequence[str]) -> Settings:
    """Return the settings that `imgclf <command> <overrides>` has; raises `ConfigError` in one line."""
    try:
        with hydra.initialize_config_dir(str(CONF.absolute()), version_base="1.3"):
            return to_settings(command, hydra.compose(command, check_overrides(command, overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain_error(command, error)) from None


def to_settings(command: str, config: DictConfig) -> Settings:
    """Return the composed config as the command's dataclass; raises `ConfigError` for missing values and unknown keys."""
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(explain_error(command, error)) from None
    assert isinstance(values, dict)
    return COMMANDS[command].from_dict({str(key): value for key, value in values.items()})


def split_flags(command: str, words: Sequence[str]) -> list[str]:
    """Return the words of a command line with `--flag=value` as two words, and with the flags that may stand anywhere in
    front: Hydra's parser stops at overrides between which there is one.

    Raises `ConfigError` for an unknown flag, and for an empty word or value.
    """
    for above, word in pairwise(["", *words]):
        require_value(above if above in FLAGS_WITH_VALUE else "an argument", word)
        _require_value_of(word)
    for position, word in enumerate(words):
        follows_flag = position > 0 and words[position - 1] in FLAGS_WITH_VALUE
        if word.startswith("-") and not follows_flag and word.partition("=")[0] not in (*FLAGS_WITH_VALUE, *_FLAGS):
            name = word.partition("=")[0].lstrip("-")
            schema, near = COMMANDS[command], get_close_matches(word, _FLAGS, 1)
            known = schema.expected(name) or name in _choice_groups()
            way = f"write {name}=<value>" if known else schema.suggest(name.replace("-", "_"))
            raise ConfigError(f"{word}: no such flag; {f'did you mean {near[0]}?' if near else way}")
    flags: list[str] = []
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        if word in ("-m", "--multirun"):
            flags.append(word)
        elif flag in FLAGS_WITH_VALUE:
            flags += [flag, value] if equals else [flag, *islice(rest, 1)]
        else:
            others.append(word)
    return [*flags, *others]


def check_overrides(command: str, words: Sequence[str]) -> list[str]:
    """Return the words of a command line as Hydra takes them; raises `ConfigError` for a key or flag that doesn't exist.

    `+key=` and `key=` mean the same, whether the config has the key already or not. `~key` sets it to null: the keys of a
    dataclass can't be deleted.
    """
    sweeps = "-m" in words or "--multirun" in words
    checked: list[str] = []
    overrides: list[str] = []
    for position, word in enumerate(words):
        follows_flag = position > 0 and words[position - 1] in (*FLAGS_WITH_VALUE, *_MAY_TAKE_A_WORD)
        if not word.startswith("-") and not follows_flag:
            if "=" not in word and not word.startswith("~"):
                raise ConfigError(
                    f"{word}: expected key=value, such as dataset=cards; imgclf {command} --help lists the keys"
                )
            _require_value_of(word)
            word = _check_override(COMMANDS[command], word, sweeps)
            overrides.append(word)
        checked.append(word)
    if sweeps:
        _check_sweep(command, overrides)
    return checked


def _require_value_of(word: str) -> None:
    """Raise `ConfigError` for `key=`, `key=''` and `--flag=`."""
    key, equals, value = word.partition("=")
    if equals and re.fullmatch(r"(hydra/)?[\w.@:/+~-]+", key) and "/" not in key.removeprefix("hydra/"):
        require_value(f"{key.lstrip('+')}=", value.strip().strip("'\""))


def _check_sweep(command: str, words: Sequence[str]) -> None:
    """Raise `ConfigError` for a value in `key=a,b,c` that no trial can use, before the first trial begins."""
    parser = OverridesParser.create()
    try:
        overrides = parser.parse_overrides(list(words))
        fixed = [word for word, override in zip(words, overrides, strict=True) if not override.is_sweep_override()]
        with hydra.initialize_config_dir(str(CONF.absolute()), version_base="1.3"):
            config = hydra.compose(command, fixed)
    except (HydraException, OmegaConfBaseException):  # such as a choice of the user's own --config-dir
        return
    for override in overrides:
        place = _locate(COMMANDS[command], override.key_or_group)
        if (
            place not in ("field", "optional")
            or not override.is_choice_sweep()
            or override.key_or_group in _choice_groups()
        ):
            continue
        for text in override.sweep_string_iterator():
            trial = config.copy()
            OmegaConf.set_struct(trial, False)
            value = parser.parse_override(f"{override.key_or_group}={text}").value()
            try:
                OmegaConf.update(trial, override.key_or_group, value)
            except OmegaConfBaseException:
                expected = COMMANDS[command].expected(override.key_or_group)
                raise ConfigError(f"{override.key_or_group}={text}: expected {expected}") from None
            to_settings(command, trial)


def _check_override(schema: type[Settings], word: str, sweeps: bool) -> str:
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:  # Hydra's own message points at the character
        key, equals, value = word.partition("=")
        is_folder = re.fullmatch(r"hydra\.(run|sweep)\.\w+", key)
        text = equals and (is_folder or "text" in (schema.expected(key.lstrip("+")) or ""))
        return f"{key.lstrip('+')}={quoted(value)}" if text else word
    key = override.key_or_group.partition("@")[0]
    if override.is_sweep_override() and not sweeps:
        raise ConfigError(f"{word}: several values make a sweep; use `imgclf train -m`, or quote one value with commas")
    if key.startswith("hydra."):
        own = [item.name for item in fields(HydraConf)]
        if key.split(".")[1] not in own:
            raise ConfigError(f"{key}: unknown key; {nearest(key, _hydra_keys())}")
        return word
    if "/" in key or key in _choice_groups():
        return word.lstrip("+")
    place = _locate(schema, key)
    if place is None:
        raise ConfigError(f"{key}: unknown key; {schema.suggest(key)}")
    if override.is_delete() and place != "free":
        word = f"{key}=null"
    if place in ("optional", "free") and not override.is_delete():
        # The group may be null so far, or have no such key yet, and Hydra only overrides what exists.
        return f"++{word.lstrip('+')}"
    return word.lstrip("+") if place == "field" else word


@cache
def _choice_groups() -> list[str]:
    return [path.name for path in CONF.iterdir() if path.is_dir()]


def _locate(schema: type[Settings], key: str) -> str | None:
    """Return "field" for a key of the schema, "optional" for one of a group that may be null, "free" for one inside a mapping
    of any keys, None for an unknown one.
    """
    owner, names, answer = schema, key.split("."), "field"
    for position, name in enumerate(names):
        if name not in owner.field_names():
            return None
        inner, rest = group_of(owner, name), names[position + 1 :]
        if not rest:  # Hydra merges a whole mapping only where it may add keys
            return "free" if get_origin(owner.type_of(name)) is dict else answer
        if inner is None:
            return "free"
        if get_origin(owner.type_of(name)) is dict:  # such as dataset.splits.train.files: any name, then a group
            return "free" if len(rest) == 1 or _locate(inner, ".".join(rest[1:])) else None
        if type(None) in get_args(owner.type_of(name)):
            answer = "optional"
        owner = inner
    return None


def explain_error(command: str, error: BaseException) -> str:
    """Return what Hydra or OmegaConf found wrong as one line that names the key and what was expected."""
    schema, cause = COMMANDS[command], error.__cause__ or error.__context__ or error
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, ImgclfError):  # of a value that imgclf computes, such as the folder of the run to resume
            return str(link)
        link = link.__cause__ or link.__context__
    key = str(getattr(error, "full_key", "") or getattr(cause, "full_key", "") or "")
    text = str(error)
    if merging := re.match(r"Error merging override (\S+?)=(.*)", text):
        owner_key = merging[1].lstrip("+~")
        if expected := schema.expected(owner_key):
            return f"{owner_key}={merging[2]}: expected {expected}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        choices = [name for name in error.options if name != "base"]
        way = nearest(choice, choices)
        if group == "model":
            of_timm = f"model=timm model.backbone={choice}"
            near = way.endswith("?")
            way = (
                f"{way} For a network of timm pass {of_timm}"
                if near
                else f"pass {of_timm} for a network of timm; {way}"
            )
        if group == "dataset" and not way.endswith("?"):
            way = f"{way}; --config-dir <folder> adds your own"
        return f"{group}={choice}: no such choice; {way}"
    if missing := re.search(r"Could not (?:find|load) '(?:hydra/)?(launcher|sweeper)/([a-z]+)", text):
        kind, package = missing.groups()
        if package in _PLUGINS:
            return f"hydra/{kind}: the package hydra-{package}-{kind} isn't installed; {install_hint(package)}"
    if key.startswith("hydra.") and "not in" in str(cause):
        return f"{key}: unknown key; {nearest(key, _hydra_keys())}"
    if "Missing mandatory value" in text:
        return f"{key}: no value; pass {key}=<value>"
    if key and "not in" in str(cause) and _locate(schema, key) is None:
        return f"{key}: unknown key; {schema.suggest(key)}"
    if key and (expected := schema.expected(key)) and "could not be converted" in str(cause):
        return f"{key}: {str(cause).splitlines()[0]}; expected {expected}"
    return _one_line(text) or type(error).__name__


def _hydra_keys() -> list[str]:
    """Return the dotted keys of Hydra's own settings."""
    values = OmegaConf.to_container(OmegaConf.structured(HydraConf), resolve=False)
    assert isinstance(values, dict)
    return [f"hydra.{key}" for key in flatten({str(key): value for key, value in values.items()})]


def _one_line(text: str) -> str:
    """Hydra's messages span lines; the useful ones come first."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    ends = ("Config search path:", "Set the environment variable")  # what follows is for Hydra's developers
    end = next((i for i, line in enumerate(lines) if line.startswith(ends)), len(lines))
    return " ".join(
        line for line in lines[:end] if not line.startswith(("full_key:", "object_type=", "reference_type="))
    )


def help_text(command: str, overrides: Sequence[str]) -> str:
    """Return the command's help: usage, examples, choices, and every setting that it uses with its value and its sentence."""
    with hydra.initialize_config_dir(str(CONF.absolute()), version_base="1.3"):
        config = hydra.compose(command, check_overrides(command, overrides), return_hydra_config=True)
    shown = config.hydra.help
    own = [name for name in COMMANDS[command].field_names() if name in config]
    values = OmegaConf.to_container(OmegaConf.masked_copy(config, own), resolve=True)
    assert isinstance(values, dict)
    schema = COMMANDS[command]
    groups = "".join(
        textwrap.fill(f"{name}: {', '.join(choices)}", _width(), initial_indent="  ", subsequent_indent="      ") + "\n"
        for name in (*schema.field_names(), *_OTHER_GROUPS.get(command, ()))
        if (choices := _choices_of(name, config.hydra.searchpath, KNOWN if command == "download" else None))
    )
    settings = "\n".join(_describe(schema, values, schema.unused))
    examples = textwrap.indent(shown.footer.strip(), "  ")
    parts = [textwrap.fill(shown.header, _width()), f"usage: {shown.template}", f"Examples:\n{examples}"]
    parts.append(f"Choices of each group:\n{groups.rstrip()}")
    if settings:
        parts.append(f"Settings, their values and what they mean:\n{settings}")
    return "\n\n".join(part.strip() for part in parts)


_OTHER_GROUPS = {"train": ("experiment", "debug", "hparams_search")}  # groups that set others' settings


def _choices_of(group: str, folders: Sequence[str], only: Collection[str] | None = None) -> list[str]:
    """Return the choices of a group in `conf/` and in the user's own `folders`, sorted; those in `only`, if it is given."""
    roots = [CONF, *(Path(folder.removeprefix("file://")) for folder in folders)]
    names = {file.stem for root in roots for file in (root / group).glob("*.yaml")}
    return sorted(names if only is None else names.intersection(only))


def _width() -> int:
    return max(60, min(120, shutil.get_terminal_size().columns))


def _describe(
    schema: type[Settings], values: dict[Any, Any], unused: Collection[str], above: str = "", indent: str = ""
) -> list[str]:
    """Return lines of key, value and sentence; advanced settings only where they are set, `unused` ones never."""
    lines: list[str] = []
    for name, value in values.items():
        item = schema.field(str(name))
        if item is None or f"{above}{name}" in unused or (item.metadata["advanced"] and value == default_of(item)):
            continue
        inner = group_of(schema, str(name))
        if inner is not None and isinstance(value, dict) and get_origin(schema.type_of(str(name))) is not dict:
            optional = type(None) in get_args(schema.type_of(str(name)))
            settings = {**inner().to_dict(), **value} if optional else value
            lines += [f"{indent}{name}:", *_describe(inner, settings, unused, f"{above}{name}.", indent + "  ")]
            continue
        shown = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
        choices = f" ({', '.join(item.metadata['choices'])})" if item.metadata["choices"] else ""
        sentence = f"{item.metadata['help'].removesuffix('.')}{choices}"
        wrapped = textwrap.wrap(sentence, _width() - _HELP_COLUMN - 2, break_on_hyphens=False)
        key = f"{indent}{name}: {shown}"
        lines += [key] if len(key) >= _HELP_COLUMN else []
        keys = [key if len(key) < _HELP_COLUMN else "", *[""] * len(wrapped)]
        lines += [f"{left:<{_HELP_COLUMN}}# {right}" for left, right in zip(keys, wrapped, strict=False)]
    return lines


def _register_schemas() -> None:
    """Let Hydra compose against the dataclasses: `<command>_schema`, and `base` in the groups that users extend."""
    store = ConfigStore.instance()
    for command, schema in COMMANDS.items():
        store.store(name=f"{command}_schema", node=_mutable(schema))
    for group, schema in _GROUPS.items():
        node = OmegaConf.structured(_mutable(schema))
        if group == "model":
            node.pretrained = "${imgclf.pretrained:${data_dir}}"  # the drawn demo has nothing in common with ImageNet
        store.store(group=group, name="base", node=node)


_MUTABLE: dict[type[Settings], type] = {}


def _mutable(schema: type[Settings]) -> type:
    """Return a dataclass like `schema`, but not frozen: OmegaConf makes nodes of frozen ones read-only."""
    if schema in _MUTABLE:
        return _MUTABLE[schema]
    members: list[tuple[str, Any, Any]] = []
    for item in fields(schema):
        kind, default = schema.type_of(item.name), cast(Any, None)
        if inner := group_of(schema, item.name):
            mutable = _mutable(inner)
            # OmegaConf can't merge a mapping into a typed null or under a new key: both are checked afterwards.
            if get_origin(kind) is dict:
                kind, default = dict[str, Any], field(default_factory=dict)
            elif type(None) in get_args(kind):
                kind, default = Any, field(default=None)
            else:
                kind, default = mutable, field(default_factory=mutable)
        elif item.default is MISSING:
            default = field(default_factory=cast(Any, item.default_factory))
        else:
            default = field(default=item.default)
            if any(get_origin(option) is list for option in get_args(kind)[1:]):
                kind = Any  # OmegaConf has no text or list; it is checked afterwards
        members.append((item.name, kind, default))
    _MUTABLE[schema] = make_dataclass(schema.__name__, members)
    return _MUTABLE[schema]


_register_schemas()  # on import: a launcher's processes resolve what this one has composed
register_resolvers()
