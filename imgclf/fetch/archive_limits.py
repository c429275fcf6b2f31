"""What an archive may become on disk, and how much of that it has become."""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Limits", "Meter", "RefusedError"]


class RefusedError(Exception):
    """What is wrong with a member; `extract` adds which member of which archive."""


@dataclass(frozen=True)
class Limits:
    """What one archive may become on disk; one limit crossed refuses the archive.

    `max_ratio` compares what is written with the archive's own size, from `ratio_from_bytes` on: pixel CSVs shrink 10
    times, deflate's bombs 1,000 times, and a small archive of flat pictures is nobody's bomb.
    """

    max_bytes: int = 64 << 30  # ASL's 87,000 pictures take 1 GB, Open Images' largest part 46 GB
    max_members: int = 2_000_000  # ImageNet-1k has 1,431,167 pictures
    max_ratio: float = 200
    ratio_from_bytes: int = 64 << 20


@dataclass
class Meter:
    """What has been unpacked so far, against the limits."""

    limits: Limits
    packed_bytes: int | None  # None: there is no archive, no ratio
    members: int = 0
    written: int = 0
    report: Callable[[int], None] | None = None  # hears the bytes so far

    def count_member(self) -> None:
        """One more member; RefusedError beyond the limit."""
        self.members += 1
        if self.members > self.limits.max_members:
            raise RefusedError(f"has more than {self.limits.max_members} members")

    def count_bytes(self, count: int) -> None:
        """`count` more bytes; RefusedError beyond the limits. Tells `report`."""
        self.written += count
        if self.written > self.limits.max_bytes:
            raise RefusedError(f"unpacks to more than {self.limits.max_bytes} bytes in all")
        allowed = None if self.packed_bytes is None else self.limits.max_ratio * self.packed_bytes
        if allowed is not None and self.written > max(allowed, self.limits.ratio_from_bytes):
            raise RefusedError(f"unpacks to more than {self.limits.max_ratio} times the archive's size")
        if self.report:
            self.report(self.written)
