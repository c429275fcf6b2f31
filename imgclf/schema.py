"""Frozen dataclasses as settings: checked values, plain data in and out, and the nearest key for a misspelt one."""

from __future__ import annotations

import operator
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from functools import cache
from typing import Any, ClassVar, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from imgclf.errors import ConfigError, nearest, require_value

__all__ = ["Settings", "check_limits", "flatten", "quoted", "setting"]

_LISTED = 15  # keys that a message lists
Plain = dict[str, Any]
_COMPARE = {"of at least": operator.ge, "at most": operator.le, "above": operator.gt, "below": operator.lt}
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def setting(
    default: Any = MISSING,
    help: str = "",
    *,
    choices: Sequence[str] = (),
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    may_change: bool = False,
    on_resume: bool = False,
    advanced: bool = False,
) -> Any:
    """Declare a field of `Settings`: its default, one sentence of help, and the values that it may take.

    `choices` lists the words allowed. Numbers, those in lists and mappings too, lie from `low` to `high`, or
    strictly `above` and `below`; NaN never does.
    `may_change`: a resumed run may have another value; `on_resume`: `resume=<folder>` takes it from the command line.
    `advanced`: left out of help and config.yaml at its default.
    A class or function as the default makes a new value for each instance.
    """
    limits = (("of at least", low), ("at most", high), ("above", above), ("below", below))
    metadata = {
        "help": help,
        "choices": tuple(choices),
        "limits": limits,
        "may_change": may_change or on_resume,
        "on_resume": on_resume,
        "advanced": advanced,
    }
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """The base of every group of settings; raises `ConfigError` for a value of the wrong type or outside its limits."""

    path: ClassVar[str] = ""  # the dotted key under which the group stands in a run's settings
    aliases: ClassVar[Mapping[str, str]] = {}  # what people type -> the key that they mean
    unused: ClassVar[frozenset[str]] = frozenset()  # dotted keys that a command takes, but doesn't use
    reserved: ClassVar[Mapping[str, str]] = {}  # keys of a library that imgclf sets itself -> what to do instead

    def __post_init__(self) -> None:
        for item in fields(self):
            value = _convert(getattr(self, item.name), self.type_of(item.name), self.key(item.name))
            for text in value if isinstance(value, list) else [value]:
                require_value(self.key(item.name), text)
            check_limits(value, item, self.key(item.name))
            object.__setattr__(self, item.name, value)

    @classmethod
    def key(cls, name: str) -> str:
        """Return the dotted key of the field `name`, as a command line writes it."""
        return f"{cls.path}.{name}" if cls.path else name

    @classmethod
    def from_dict(cls: type[S], values: Mapping[str, Any] | S | None) -> S:
        """Build the settings from plain data; an instance is returned as it is, None means all defaults.

        Raises `ConfigError` for an unknown key, with the nearest known one, and for a value of the wrong type.
        """
        if isinstance(values, cls):
            return values
        if not isinstance(values, Mapping) and values is not None:
            raise ConfigError(
                f"{cls.path or 'settings'}={values!r}: expected a mapping of {', '.join(cls.field_names())}"
            )
        for name in values or {}:
            if name not in cls.field_names():
                raise ConfigError(f"{cls.key(str(name))}: unknown key; {cls.suggest(str(name))}")
        return cls(**(values or {}))

    def to_dict(self) -> Plain:
        """Return plain dictionaries, lists and numbers, without the advanced settings that have their default."""
        return {item.name: _plain(getattr(self, item.name)) for item in fields(self) if not self.is_hidden(item)}

    def is_hidden(self, item: Field[Any]) -> bool:
        """Return whether the field is advanced and has its default."""
        return bool(item.metadata.get("advanced")) and getattr(self, item.name) == default_of(item)

    @classmethod
    def field_names(cls) -> list[str]:
        """Return the names of the fields."""
        return [item.name for item in fields(cls)]

    @classmethod
    def field(cls, name: str) -> Field[Any] | None:
        """Return the field called `name`, None where there is none."""
        return next((item for item in fields(cls) if item.name == name), None)

    @classmethod
    def type_of(cls, name: str) -> Any:
        """Return the annotated type of the field `name`."""
        return _types(cls)[name]  # type: ignore[arg-type]  # mypy looks for the hash of an instance

    @classmethod
    def expected(cls, key: str) -> str | None:
        """Return in words what the value of the dotted `key` must be; None for an unknown key."""
        first, _, rest = key.partition(".")
        if first not in cls.field_names():
            return None
        inner = group_of(cls, first)
        return (inner.expected(rest) if inner else None) if rest else _expected(_options(cls.type_of(first)))

    @classmethod
    def suggest(cls, key: str) -> str:
        """Return what to type in place of the unknown `key`: the nearest of this group, or of the groups inside it."""
        first, _, rest = key.partition(".")
        inner = group_of(cls, first) if rest and first in cls.field_names() else None
        if inner and get_origin(cls.type_of(first)) is dict:  # such as dataset.splits.train.kind
            member, _, rest = rest.partition(".")
            return inner.suggest(rest).replace(f"{inner.path}.", f"{inner.path}.{member}.")
        if inner:
            return inner.suggest(rest)
        keys = [cls.key(name) for name, _ in cls.walk()]
        by_last = {name.rpartition(".")[2]: name for name in reversed(keys)}
        last = key.rpartition(".")[2]
        if last in cls.aliases:
            return f"did you mean {cls.aliases[last]}?"
        if last in cls.reserved:
            return f"imgclf sets it itself; {cls.reserved[last]}"
        begun = [name for name in keys if len(last) > 2 and name.rpartition(".")[2].startswith(f"{last}_")]
        near = (
            begun[:1]
            or get_close_matches(cls.key(key), keys, 1, 0.75)
            or [by_last[n] for n in get_close_matches(last, by_last, 1, 0.6)]
        )
        near = near or [name for name in keys if name.rpartition(".")[2].endswith(f"_{last}")][:1]
        names = cls.field_names()
        listed = f"expected one of {', '.join(names)}" if len(names) <= _LISTED else "--help lists all keys"
        return f"did you mean {near[0]}?" if near else listed

    @classmethod
    def walk(cls) -> Iterator[tuple[str, Field[Any]]]:
        """Yield (dotted name, field) of every field, those of nested groups included."""
        for item in fields(cls):
            yield item.name, item
            if group := group_of(cls, item.name):
                yield from ((f"{item.name}.{name}", inner) for name, inner in group.walk())

    @classmethod
    def keys_with(cls, mark: str) -> tuple[str, ...]:
        """Return the dotted names of the settings with this mark: may_change, on_resume or advanced."""
        return tuple(name for name, item in cls.walk() if item.metadata[mark])


S = TypeVar("S", bound=Settings)


def default_of(item: Field[Any]) -> Any:
    """Return the default value of a field of settings."""
    return item.default if item.default is not MISSING else cast(Any, item.default_factory)()


def group_of(owner: type[Settings], name: str) -> type[Settings] | None:
    """Return the class of the field `name` where that is a group of settings."""
    options = _options(owner.type_of(name))
    options = _options(get_args(options[0])[1]) if get_origin(options[0]) is dict else options
    return next((kind for kind in options if isinstance(kind, type) and issubclass(kind, Settings)), None)


def flatten(values: Mapping[str, Any], above: str = "") -> Plain:
    """Return {"a.b": 1} for {"a": {"b": 1}}; lists stay whole, and so does an empty mapping."""
    flat: Plain = {}
    for key, value in values.items():
        flat |= flatten(value, f"{above}{key}.") if isinstance(value, Mapping) and value else {f"{above}{key}": value}
    return flat


def quoted(text: str) -> str:
    """Return text as a value in Hydra's grammar: of backslashes before a quote or a `${`, each pair is read as one."""
    text = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)
    return "'" + re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text) + "'"


@cache
def _types(cls: type[Settings]) -> dict[str, Any]:
    return get_type_hints(cls)


def _options(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _convert(value: Any, kind: Any, key: str) -> Any:
    """Return `value` as one of the types that `kind` allows; a mapping becomes the group of settings there."""
    options = _options(kind)
    for option in options:
        origin = get_origin(option) or option
        if option is Any or (value is None and option is type(None)):
            return value
        if isinstance(option, type) and issubclass(option, Settings) and isinstance(value, (Mapping, option)):
            return option.from_dict(value)
        if origin is list and isinstance(value, (list, tuple)):
            return [_convert(inner, get_args(option)[0], key) for inner in value]
        if origin is dict and isinstance(value, Mapping):
            return {
                str(name): _convert_member(inner, get_args(option)[1], key, str(name)) for name, inner in value.items()
            }
        if origin is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return value
        if origin in (int, str, bool) and type(value) is origin:
            return value
    raise ConfigError(f"{key}={value!r}: expected {_expected(options)}")


def _convert_member(value: Any, kind: Any, key: str, name: str) -> Any:
    """Return the member `name` of the mapping `key` converted; groups know the mapping's key only, so errors gain the name."""
    try:
        return _convert(value, kind, f"{key}.{name}")
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if f"{key}.{name}" in text else text.replace(f"{key}.", f"{key}.{name}.")) from None


def _expected(options: Sequence[Any]) -> str:
    words = ["null" for option in options if option is type(None)]
    for option in options:
        if isinstance(option, type) and issubclass(option, Settings):
            words.append(f"a mapping of {', '.join(option.field_names())}")
        elif option is not type(None):
            words.append(_WORDS.get(option) or f"a {'list' if get_origin(option) is list else 'mapping'}")
    return ", or ".join(words)


def check_limits(value: Any, item: Field[Any], key: str) -> None:
    """Raise `ConfigError` unless `value`, and each number in its lists and mappings, is one that the field `item` may have."""
    choices = item.metadata.get("choices")
    word = str(value).lower() if isinstance(value, bool) else value
    if choices and value is not None and word not in choices:
        raise ConfigError(f"{key}={value!r}: {nearest(str(value), choices)}")
    limits = [(word, limit) for word, limit in item.metadata.get("limits", ()) if limit is not None]
    for number in _numbers(value, item):
        if not all(_COMPARE[word](number, limit) for word, limit in limits):
            kind = "a whole number" if "int" in str(item.type) and "float" not in str(item.type) else "a number"
            ends = " and ".join(
                f"{word} {limit:,}" if type(limit) is int else f"{word} {limit:g}" for word, limit in limits
            )
            raise ConfigError(f"{key}={str(number)[:40]}: expected {kind} {ends}")


def _numbers(value: Any, item: Field[Any]) -> Iterator[int | float]:
    """Yield the numbers in a value; of a field of any type also one that is written as text, as in trainer.devices="2"."""
    pending = [value]
    if isinstance(value, str) and str(item.type) == "Any" and re.fullmatch(r"[+-]?\d{1,400}", value):
        pending = [int(value)]
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            pending += value.values()
        elif isinstance(value, (list, tuple)):
            pending += value
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield value


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.to_dict()
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value]
