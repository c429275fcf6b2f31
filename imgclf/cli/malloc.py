"""glibc's allocator, told to keep what it has: torch maps every large activation afresh otherwise, and pays in page faults.

The settings are those of mallopt(3): no mapping of large blocks by themselves, nothing given back before the end, and the
heap grown by 512 MB at a time. Peak memory rises with it. `IMGCLF_MALLOC=0` leaves the allocator alone.
"""

import ctypes
import os
import sys

__all__ = ["tune_malloc"]

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # malloc.h


def tune_malloc() -> bool:
    """Tune the allocator of this process, and say whether that was done; does nothing but on Linux with glibc.

    Call it before torch allocates. Variables that tune malloc from outside are respected.
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
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, 2**31 - 1), mallopt(_TOP_PAD, 512 << 20)])
