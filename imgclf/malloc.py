"""Tune glibc's malloc to reuse memory: by default each large activation is mapped again, at the price of page faults.

The settings are those of mallopt(3): no separate mappings for large blocks, no memory returned before exit, and a heap
that grows by 512 MB at a time. Peak memory rises. `IMGCLF_MALLOC=0` leaves the allocator as it is.
"""

import ctypes
import os
import sys

__all__ = ["tune_malloc"]

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8  # malloc.h


def tune_malloc(for_threads: bool = False) -> bool:
    """Tune the allocator of this process, and return whether it was tuned; only Linux with glibc is.

    `for_threads`: also where a thread other than the first computes. A heap of its own, which glibc gives it, grows by at
    most 64 MB and ignores the settings: a batch of 16 images took 58,000 page faults, and in the one heap of all 1,600.
    Best before torch allocates; a second call changes nothing. Environment variables that tune malloc, and a preloaded
    allocator, take precedence.
    """
    if sys.platform != "linux" or os.environ.get("IMGCLF_MALLOC") == "0":
        return False
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ) or "LD_PRELOAD" in os.environ:
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt = libc.mallopt
    except (OSError, AttributeError):  # musl has neither that name nor mallopt
        return False
    if for_threads and not mallopt(_ARENA_MAX, 1):
        return False
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, 2**31 - 1), mallopt(_TOP_PAD, 512 << 20)])
