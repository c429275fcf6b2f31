"""What a model file holds besides its network, as plain data that is checked before anybody relies on it.

A checkpoint keeps it under the key `imgclf`, an exported file in its metadata. Nothing here loads torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from imgclf.config import RunConfig
from imgclf.errors import CheckpointError, ConfigError
from imgclf.schema import check_limits, flatten, setting

__all__ = ["CheckpointMetadata", "DataFacts", "is_list", "mirror_axes", "require"]

T = TypeVar("T")

_COUNT, _ANY = 2**53, 1e100  # limits of the numbers below, which nothing is allocated or counted by
_MEASURED = ("metrics", "history", "running", "plateau")  # may be infinite, or no number


@dataclass
class DataFacts:
    """The data set of a run: its name, root folder, images per split, and the flips that keep an image's class."""

    name: str = ""
    root: str = ""
    counts: dict[str, int] = setting(dict, low=0, high=_COUNT)
    flips: list[str] = field(default_factory=list)


@dataclass
class CheckpointMetadata:
    """Plain data that a checkpoint holds besides the network.

    `config`: the run's settings, None for a classifier made from Python. `fingerprint`: {split: {class: [count, digest]}}.
    `metrics`: {split: {metric: value}} of the finished run. `temperature` divides the logits. `engine` names the runtime
    that computed cached features. `history`: one row per epoch. `running`: sums of the loss and of the top-5 hits over
    the images of the current epoch, `confusion` their matrix [K, K]. `learning_rate`: at the last step. `plateau`: the
    state of a plateau schedule. `stopped_early`: early stopping ended the run. `threads`: those of torch, on which the last
    digits of sums depend; 0 where they are unknown.
    """

    config: dict[str, Any] | None = setting(None, low=-(2**63), high=2**63)
    data: DataFacts = field(default_factory=DataFacts)
    fingerprint: dict[str, Any] = setting(dict, low=0, high=_COUNT)
    metrics: dict[str, Any] = setting(dict, low=-_ANY, high=_ANY)
    temperature: float = setting(1.0, above=0, below=1000)
    engine: str | None = None
    history: list[dict[str, Any]] = setting(list, low=-_ANY, high=_ANY)
    running: list[float] = setting(list, low=-_ANY, high=_ANY)
    confusion: list[list[int]] = setting(list, low=0, high=_COUNT)
    learning_rate: float = setting(0.0, low=0, high=1e12)
    plateau: dict[str, Any] | None = setting(None, low=-_ANY, high=_ANY)
    stopped_early: bool = False
    threads: int = setting(0, low=0, high=2**16)

    def to_dict(self) -> dict[str, object]:
        """Return plain data; later epochs don't change it."""
        return {**vars(self), "data": dict(vars(self.data)), "history": [dict(row) for row in self.history]}

    def flips(self) -> tuple[str, ...]:
        """Return the flips that keep an image's class, from the data set; raises `ConfigError` where it names none."""
        augment = ((self.config or {}).get("dataset") or {}).get("augment") or {}
        used = [name for name in ("horizontal", "vertical") if augment.get(f"{name}_flip")]
        known = self.data.flips or used
        if not known:
            raise ConfigError(
                "tta: the model's data set names no flip that keeps the class (dataset.flips); "
                "leave tta out, or train with dataset.flips=[horizontal]"
            )
        return tuple(known)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], num_classes: int) -> "CheckpointMetadata":
        """Return the inverse of `to_dict`; raises `CheckpointError` where a value isn't what every reader relies on."""
        metadata, data = _known(cls, values), values.get("data", {})
        require({"data": isinstance(data, dict)})
        metadata.data = _known(DataFacts, data)
        config = metadata.config
        require(
            {
                "history": is_list(metadata.history, dict) and all(map(_is_measured, metadata.history)),
                "running": is_list(metadata.running, (int, float)) and len(metadata.running) == 2,
                "confusion": _is_matrix(metadata.confusion, num_classes),
                "plateau": isinstance(metadata.plateau, (dict, type(None))),
                "config": config is None or _is_config(config),
                "data": isinstance(metadata.data.name, str) and isinstance(metadata.data.root, str),
                "flips": is_list(metadata.data.flips, str),
                "counts": isinstance(metadata.data.counts, dict) and is_list([*metadata.data.counts.values()], int),
                "metrics": isinstance(metadata.metrics, dict) and is_list([*metadata.metrics.values()], dict),
                "fingerprint": _is_fingerprint(metadata.fingerprint),
                "temperature": is_list([metadata.temperature], (int, float)),
                "learning_rate": is_list([metadata.learning_rate], (int, float)),
                "engine": isinstance(metadata.engine, (str, type(None))),
                "threads": type(metadata.threads) is int,
                "stopped_early": isinstance(metadata.stopped_early, bool),
            }
        )
        known = dict(RunConfig.walk())
        for key, value in flatten(config or {}).items():  # an older run may have had other settings too
            if key in known:
                check_limits(value, known[key], f"its config: {key}")
        _check_limits(metadata)
        _check_limits(metadata.data)
        return metadata


def _check_limits(values: CheckpointMetadata | DataFacts) -> None:
    """Raise `CheckpointError` for a number beyond its field's limits; what was measured may be infinite, or no number."""
    for item in fields(values):
        value = getattr(values, item.name)
        if item.name in _MEASURED:
            value = _finite(value)
        try:
            check_limits(value, item, f"its {item.name}")
        except ConfigError as error:
            raise CheckpointError(f"{error}; use another checkpoint") from None


def _finite(value: Any) -> Any:
    """Return nested plain data without the floats that are infinite or NaN."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def require(valid: Mapping[str, object]) -> None:
    """Raise `CheckpointError` for the first name whose value is false."""
    for name, holds in valid.items():
        if not holds:
            raise CheckpointError(f"its {name} isn't what imgclf writes; use another checkpoint")


def _known(kind: type[T], values: Mapping[str, Any]) -> T:
    """Return the dataclass `kind` of those `values` that it has a field for."""
    return kind(**{item.name: values[item.name] for item in fields(kind) if item.name in values})  # type: ignore[arg-type]


def is_list(values: object, kind: type | tuple[type, ...]) -> bool:
    """Return whether it is a list of that kind; true and false are no numbers."""
    return isinstance(values, list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in values)


def _is_measured(row: dict[Any, Any]) -> bool:
    """Return whether it is an epoch of a history: numbers by column, or null where nothing was measured."""
    return isinstance(row.get("epoch"), int) and is_list([*row.values()], (int, float, type(None)))


def _is_fingerprint(values: object) -> bool:
    """Return whether it is {split: {class: [number of samples, digest]}}."""
    splits = list(values.values()) if isinstance(values, dict) else [None]
    classes = [entry for split in splits for entry in (split.values() if isinstance(split, dict) else [None])]
    return all(
        isinstance(entry, list) and len(entry) == 2 and is_list(entry[:1], int) and isinstance(entry[1], str)
        for entry in classes
    )


def _is_matrix(rows: object, side: int) -> bool:
    return isinstance(rows, list) and len(rows) == side and all(is_list(row, int) and len(row) == side for row in rows)


def _is_config(config: object) -> bool:
    dataset = config.get("dataset") if isinstance(config, dict) else None
    named = isinstance(dataset, dict) and isinstance(dataset.get("name"), str)
    return isinstance(config, dict) and is_list([config.get("seed")], int) and named


def mirror_axes(flips: Sequence[str], height: int, width: int) -> list[tuple[int, ...]]:
    """Return the axes to flip for each mirror image, given those of height and width; both flips together make three."""
    axes = {"horizontal": width, "vertical": height}
    if unknown := sorted(set(flips) - set(axes)):
        raise ConfigError(f"dataset.flips: {unknown[0]!r}; expected horizontal or vertical")
    single: list[tuple[int, ...]] = [(axes[name],) for name in flips]
    return [*single, (height, width)] if len(single) == 2 else single
