"""What a run was trained on, in a few bytes a class: enough to notice, and to name, that it is no longer the same."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imgclf.data.samples import Samples

__all__ = ["difference", "fingerprint"]


def fingerprint(samples: Samples) -> dict[str, list[Any]]:
    """{class: [number of samples, digest]} of one split; data that moved as a whole has the same digests.

    The digest covers, in order, each file's name, its folder's and its size, or the pixels where they are in memory. It
    reads no file: a file replaced by another of its very size goes unnoticed.
    """
    prints: dict[str, list[Any]] = {}
    for target, name in enumerate(samples.classes):
        members = np.flatnonzero(samples.targets == target)
        digest = hashlib.blake2b(digest_size=8)
        if samples.pixels is not None:
            digest.update(np.ascontiguousarray(samples.pixels[members]).tobytes())
        else:
            for index in members:
                path = Path(samples.items[index])
                digest.update(f"{path.parent.name}/{path.name}\0{_size(path)}\0".encode(errors="surrogateescape"))
        prints[name] = [len(members), digest.hexdigest()]
    return prints


def difference(theirs: Mapping[str, Mapping[str, Any]], ours: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The first difference between the fingerprints of two sets of splits, in words; None where there is none."""
    for split in ours:
        before, now = theirs.get(split, {}), ours[split]
        for name in {**before, **now}:
            was, is_now = before.get(name, [0, ""]), now.get(name, [0, ""])
            if was[0] != is_now[0]:
                return f"{split} had {was[0]:,} pictures of {name}, now {is_now[0]:,}"
            if was[1] != is_now[1]:
                return f"the {was[0]:,} {split} pictures of {name} aren't the same files"
    return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1  # whoever reads it says so
