"""What the C library does with memory that is given back: it keeps it, for the next request wants as much."""

from __future__ import annotations

import ctypes
import sys

#: Of glibc's malloc.h: which option, and bytes. By default bodies and batches of this size come from the system with
#: each request and go back to it, a page fault for every 4 KiB.
_OPTIONS = {"M_MMAP_THRESHOLD": (-3, 64 * 2**20), "M_TRIM_THRESHOLD": (-1, 256 * 2**20)}


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory, up to 256 MiB; False where it is not glibc, and nothing is changed."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    results = [mallopt(option, size) for option, size in _OPTIONS.values()]
    return all(results)
