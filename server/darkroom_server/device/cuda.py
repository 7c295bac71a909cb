"""Settings of CUDA for the whole process."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import MutableMapping
from importlib.metadata import version

allowed_tf32: bool | None = None  # as `set_tf32` was told last
ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # before torch 2.9, and since


def choose_allocator(environment: MutableMapping[str, str] = os.environ) -> None:
    """To be called before torch is imported: let torch's memory pools grow in place, so that what one size of pictures
    left behind serves another. An operator's own setting stays."""
    if sys.platform == "linux" and not any(name in environment for name in ALLOCATOR):
        environment.update(dict.fromkeys(ALLOCATOR, "expandable_segments:True"))


def has_driver() -> bool:
    """Whether torch may find a GPU, told without torch, which takes seconds to import."""
    if "+rocm" in version("torch") or sys.platform == "darwin":
        return True
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def is_cpu(device: str) -> bool:
    """Whether a configured device is the CPU, told without torch."""
    return device == "cpu" or (device == "auto" and not has_driver())


def set_tf32(allow: bool | None) -> None:
    """Whether float32 products and convolutions may round their factors to TF32, 10 bits of mantissa. None: as torch
    has it, for convolutions only."""
    global allowed_tf32
    allowed_tf32 = allow
    if allow is None:
        return
    import torch

    with warnings.catch_warnings():  # some versions name a successor, after whose use others refuse to read these
        warnings.simplefilter("ignore")
        torch.backends.cudnn.allow_tf32 = allow
        torch.backends.cuda.matmul.allow_tf32 = allow
