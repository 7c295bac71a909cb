"""The errors that plugins raise, or see; free of gRPC.

DarkroomError
├── RequestRefused            the request itself, with the violations that say where
│   ├── InvalidRequest            a bad field
│   └── UnsupportedCombination    what the model cannot do
└── JobFailed
    ├── PluginFailed              a plugin or the model raised on this sample, or gave what it must not
    └── NonFinite                 the model's result has NaN or infinity
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

# What cuBLAS, cuDNN, CUDA and the CPU's allocator say.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the CPU had too little memory."""
    import torch  # which those who only name errors go without

    by_type = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return by_type or any(text in str(error) for text in OUT_OF_MEMORY)


def is_device_lost(error: BaseException) -> bool:
    """Whether the device failed, and nothing can be computed on it any more."""
    import torch

    return isinstance(error, getattr(torch, "AcceleratorError", ())) or "CUDA error" in str(error)


@dataclass(frozen=True, slots=True)
class Violation:
    """A field that is wrong, by its path in the request, and what it should be."""

    field: str
    description: str


class DarkroomError(Exception):
    """The base of all errors that reach a client with their own reason. `metadata` goes with the reason."""

    reason: ClassVar[str] = ""
    metadata: Mapping[str, str] = {}


class RequestRefused(DarkroomError):
    """A request that is refused before any work, with everything that is wrong with it at once."""

    def __init__(self, violations: Sequence[Violation] = (), message: str = "") -> None:
        self.violations = tuple(violations)
        super().__init__(message or "; ".join(f"{v.field}: {v.description}" for v in self.violations))


class InvalidRequest(RequestRefused):
    reason = "INVALID_REQUEST"


class UnsupportedCombination(RequestRefused):
    reason = "UNSUPPORTED_COMBINATION"


class JobFailed(DarkroomError):
    """A job that failed on its own account; others are not concerned."""


class PluginFailed(JobFailed):
    """`metadata` names the plugin, the hook and the exception, as far as they are known; `contribution` is which of the
    plugin's failed."""

    reason = "PLUGIN_FAILED"

    def __init__(self, message: str, contribution: object = None, **metadata: str) -> None:
        super().__init__(message)
        self.contribution = contribution
        self.metadata = metadata


class NonFinite(JobFailed):
    reason = "NON_FINITE"
