"""What a run was trained on, in a few bytes a class: enough to notice, and to name, that it is no longer the same."""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from imgclf.data.samples import Samples

__all__ = ["difference", "file_size", "fingerprint"]


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
                item = samples.items[index]
                # The folder's name and the file's; a `Path` takes ten times as long, and there may be 100,000.
                name_in_folder = "/".join(item.replace(os.sep, "/").rsplit("/", 2)[-2:])
                digest.update(f"{name_in_folder}\0{file_size(item)}\0".encode(errors="surrogateescape"))
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


def file_size(path: str) -> int:
    """Bytes; -1 for a file that is gone: whoever reads it says so."""
    try:
        return os.stat(path).st_size  # noqa: PTH116, one call a file
    except OSError:
        return -1
