"""The C library's memory on the CPU: freed memory is kept for the next evaluation, and given back when a model leaves.

glibc by itself hands the large blocks of an evaluation back to the system each time, and to have them again costs a
page fault for every 4 KiB: a third of a step of Stable Diffusion 1.5 on two cores. Other C libraries are left alone.
"""

from __future__ import annotations

import ctypes
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of malloc.h
KEPT_BYTES = 2**30  # free memory at the end of the heap that is kept, and the largest block that is


def tune_malloc() -> None:
    """Before there are threads, as only the first one's arena can hold large blocks."""
    mallopt = _of_libc("mallopt")
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def trim_heap() -> None:
    """Hand all that is free to the system."""
    malloc_trim = _of_libc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _of_libc(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):  # Windows has no such library
        return None
