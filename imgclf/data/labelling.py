"""From labels as they were found to indices of classes: the training set defines the classes, for every split."""

from collections.abc import Sequence

import numpy as np

from imgclf.data.layouts import SplitFiles
from imgclf.data.samples import Samples, natural_key
from imgclf.errors import ConfigError, DataError

__all__ = ["absent_classes", "class_names", "label"]


def class_names(found: SplitFiles, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The classes of the training set `found`, or those of them that are `wanted`, in the order of their names.

    Raises `ConfigError` for a wanted one that isn't there, `DataError` where fewer than two are left.
    """
    names = sorted(found.names, key=natural_key if all(name.isdecimal() for name in found.names) else None)
    if wanted is not None:
        if isinstance(wanted, str):
            raise ConfigError(f"dataset.classes={wanted!r}: expected a list, such as [{wanted},...]")
        if odd := [name for name in wanted if isinstance(name, bool) or not isinstance(name, (str, int))]:
            raise ConfigError(f"dataset.classes holds {odd[0]!r}, which is no text: put the name into quotes")
        asked = {str(name) for name in wanted}
        if absent := sorted(asked - set(names)):
            raise ConfigError(
                f"dataset.classes: {', '.join(absent)} not found in {found.place}, which has {', '.join(names)}"
            )
        names = [name for name in names if name in asked]
    if len(names) < 2:
        raise DataError(f"{found.place}: found {len(names)} class(es) ({', '.join(names)}); a classifier needs two")
    return tuple(names)


def label(found: SplitFiles, classes: tuple[str, ...], split: str, some: bool) -> Samples:
    """What was found for `split`, its labels as indices of `classes`; `some`: other classes are left out on purpose.

    Raises `DataError` for a class that train doesn't have, or one that train has no pictures of.
    """
    index = {name: target for target, name in enumerate(classes)}
    if not some and (unknown := sorted(set(found.names) - set(classes))):
        raise DataError(f"{found.place}: {split} has class {', '.join(map(repr, unknown))}, which train doesn't have; "
                        "remove it, or name the classes to use in dataset.classes")  # fmt: skip
    keep = [row for row, name in enumerate(found.labels) if name in index]
    samples = Samples(
        items=tuple(found.items[row] for row in keep),
        targets=np.array([index[found.labels[row]] for row in keep], dtype=np.int64),
        classes=classes,
        pixels=None if found.pixels is None else found.pixels[keep],
    )
    if split == "train" and (empty := absent_classes(samples)):
        raise DataError(f"{found.place}: no pictures of class {', '.join(map(repr, empty))}; add some, remove the "
                        "empty folder, or name the classes to use in dataset.classes")  # fmt: skip
    return samples


def absent_classes(samples: Samples) -> list[str]:
    """The classes without a single sample."""
    return [name for name, count in zip(samples.classes, samples.counts(), strict=True) if not count]
