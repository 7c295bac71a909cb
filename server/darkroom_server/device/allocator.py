"""glibc's malloc on the CPU: the heap keeps freed memory for the next evaluation, and is trimmed when a model leaves.

By default glibc returns an evaluation's large blocks to the system each time, and allocating them again costs a page
fault per 4 KiB: a third of a step of Stable Diffusion 1.5 on two cores. Other C libraries are left alone.
"""

from __future__ import annotations

import ctypes
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of malloc.h
KEPT_BYTES = 2**30  # trim threshold, and mmap threshold: larger blocks are unmapped when freed


def tune_malloc() -> None:
    """To be called before any thread starts: only the main arena can hold large blocks. Not where all models are on a
    GPU: they gain nothing, and many processors would wait for one arena."""
    mallopt = _libc_function("mallopt")
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def trim_heap() -> None:
    """Return all free heap memory to the system."""
    malloc_trim = _libc_function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _libc_function(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):  # Windows has no such library
        return None
