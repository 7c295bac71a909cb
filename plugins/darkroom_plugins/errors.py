"""Errors of the contract, free of gRPC.

DarkroomError
├── RequestRefused            the request, with its violations
│   ├── InvalidRequest            an invalid field
│   └── UnsupportedCombination    not supported by the model
└── JobFailed
    ├── PluginFailed              a plugin or the model raised on this sample, or returned an invalid result
    └── NonFinite                 the model's result has NaN or infinity
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from darkroom_plugins.quoting import MAX_QUOTED, quoted

# In messages of cuBLAS, cuDNN, CUDA and the CPU's allocator.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the CPU had too little memory."""
    import torch  # slow, and not needed to name errors

    by_type = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return by_type or any(text in str(error) for text in OUT_OF_MEMORY)


def is_device_lost(error: BaseException) -> bool:
    """Whether the device failed for good."""
    import torch

    return isinstance(error, getattr(torch, "AcceleratorError", ())) or "CUDA error" in str(error)


def no_such(kind: str, name: str, known: Iterable[str], *, listed: bool = True) -> str:
    """That there is no `kind` of this name, with the nearest name and, if `listed`, all of them."""
    import difflib

    known = sorted(known)
    nearest = difflib.get_close_matches(name[:MAX_QUOTED].lower(), known, n=1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    there = (f"; there are: {', '.join(known)}" if known else "; there are none") if listed else ""
    return f"there is no {kind} {quoted(name)}{hint}{there}"


@dataclass(frozen=True, slots=True)
class Violation:
    """An invalid field, by its path in the request, and what it must be."""

    field: str
    description: str


class DarkroomError(Exception):
    """Base of errors that reach clients with their own reason. `metadata`: details of the reason."""

    reason: ClassVar[str] = ""
    metadata: Mapping[str, str] = {}


class RequestRefused(DarkroomError):
    """A request refused before any work, with all its violations."""

    def __init__(self, violations: Sequence[Violation] = (), message: str = "") -> None:
        self.violations = tuple(violations)
        super().__init__(message or "; ".join(f"{v.field}: {v.description}" for v in self.violations))


class InvalidRequest(RequestRefused):
    reason = "INVALID_REQUEST"


class UnsupportedCombination(RequestRefused):
    reason = "UNSUPPORTED_COMBINATION"


class JobFailed(DarkroomError):
    """A job that failed alone."""


class PluginFailed(JobFailed):
    """`metadata` names plugin, hook and exception, as far as known; `contribution` is the one that failed."""

    reason = "PLUGIN_FAILED"

    def __init__(self, message: str, contribution: object = None, **metadata: str) -> None:
        super().__init__(message)
        self.contribution = contribution
        self.metadata = metadata


class NonFinite(JobFailed):
    reason = "NON_FINITE"
