"""How much of their range 16-bit grey images use: microscopes and scanners store 12 bits in 16, which are almost black."""

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import numpy.typing as npt

from imgclf.console import progress_bar
from imgclf.data.pixel_cache import CHUNK, in_threads
from imgclf.data.samples import Samples
from imgclf.errors import ImageError
from imgclf.images import peak

__all__ = ["LITTLE", "describe_range", "sampled_range", "significant_bits"]

# Largest number of 16-bit images that is worth a remark: a quarter of the range.
LITTLE = 2**14 - 1
# Training images that are looked at without being asked for.
SAMPLED = 16


def significant_bits(samples: Samples, timeout_seconds: float) -> int:
    """Return the bits that the largest number of all 16-bit grey images needs, 1 to 16; 16 where there is no such image.

    Decodes these images, until one uses the last bit. Raises `ImageError` for a file that can't be read.
    """
    if samples.pixels is not None:
        return 16

    def peaks(part: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        found = (peak(samples.items[index]) for index in part)
        return np.array([-1 if value is None else value for value in found], dtype=np.int64)

    most = -1
    with (
        progress_bar("measuring the range of values", len(samples)) as advance,
        closing(in_threads(peaks, np.arange(len(samples)), CHUNK, timeout_seconds)) as parts,
    ):
        for part in parts:
            most = max(most, int(part.max()))
            advance(len(part))
            if most >= 2**15:
                break
    return 16 if most < 0 else max(1, most.bit_length())


def sampled_range(samples: Samples) -> str | None:
    """Return a remark on the range that a few of the samples use, evenly spread; None where it is not little."""
    if samples.pixels is not None or not len(samples):
        return None
    rows = np.unique(np.linspace(0, len(samples) - 1, SAMPLED).astype(np.int64)).tolist()
    values = list(_peaks(samples.items[row] for row in rows))
    text = describe_range(max(values)) if values else None
    return f"{text} ({len(values)} training images were looked at)" if text else None


def _peaks(items: Iterator[str]) -> Iterator[int]:
    for item in items:
        try:
            if (value := peak(item)) is not None:
                yield value
        except ImageError:  # training and `imgclf check` report it
            continue


def describe_range(most: int) -> str | None:
    """Return what to do where `most` is the largest number in 16-bit images; None where they use more than a quarter."""
    if most > LITTLE:
        return None
    white = 2 ** max(1, most.bit_length()) - 1
    return (
        f"16-bit grey uses {most / 65535:.0%} of its range: the largest value is {most:,} of 65,535, so that images are almost "
        f"black; dataset.range=auto makes {white:,} white"
    )
