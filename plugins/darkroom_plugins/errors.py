"""What can go wrong with a request, free of gRPC.

DarkroomError
├── RequestRefused            the request itself, with the violations that say where
│   ├── InvalidRequest            a bad field
│   ├── NotFound                  a name that the server does not offer
│   ├── NotImplementedYet         a field or call whose work is not there yet
│   └── UnsupportedCombination    what the model cannot do
├── RequestIdInUse
├── ResourceExhausted
│   ├── QueueFull
│   └── OutOfMemory
├── Unavailable
│   ├── ShuttingDown
│   └── DeviceLost
├── Unauthenticated
├── Cancelled
├── DeadlineExceeded
└── JobFailed
    ├── LoadFailed                a model or what goes with it does not load
    ├── PluginFailed              a plugin or the model raised on this sample
    └── NonFinite                 the model's result has NaN or infinity
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Violation:
    """A field that is wrong, by its path in the request, and what it should be."""

    field: str
    description: str


class DarkroomError(Exception):
    """The base of all errors that reach a client with their own reason."""

    reason: ClassVar[str] = ""


class RequestRefused(DarkroomError):
    """A request that is refused before any work, with everything that is wrong with it at once."""

    def __init__(self, violations: Sequence[Violation] = (), message: str = "") -> None:
        self.violations = tuple(violations)
        super().__init__(message or "; ".join(f"{v.field}: {v.description}" for v in self.violations))


class InvalidRequest(RequestRefused):
    reason = "INVALID_REQUEST"


class NotFound(RequestRefused):
    """A name that the server does not offer; `kind` is for instance ``"model"``."""

    def __init__(self, kind: str, violations: Sequence[Violation] = (), message: str = "") -> None:
        super().__init__(violations, message)
        self.reason = f"{kind.upper()}_NOT_FOUND"  # type: ignore[misc]


class NotImplementedYet(RequestRefused):
    reason = "NOT_IMPLEMENTED"


class UnsupportedCombination(RequestRefused):
    reason = "UNSUPPORTED_COMBINATION"


class RequestIdInUse(DarkroomError):
    reason = "REQUEST_ID_IN_USE"


class ResourceExhausted(DarkroomError):
    """Too much at once; `retry_after` is in seconds, None where waiting does not help."""

    retry_after: float | None = None


class QueueFull(ResourceExhausted):
    reason = "QUEUE_FULL"
    retry_after = 1.0


class OutOfMemory(ResourceExhausted):
    reason = "OUT_OF_MEMORY"


class Unavailable(DarkroomError):
    """The server cannot serve now; `retry_after` is in seconds."""

    retry_after: float | None = 5.0


class ShuttingDown(Unavailable):
    reason = "SHUTTING_DOWN"


class DeviceLost(Unavailable):
    reason = "DEVICE_LOST"


class Unauthenticated(DarkroomError):
    pass


class Cancelled(DarkroomError):
    pass


class DeadlineExceeded(DarkroomError):
    pass


class JobFailed(DarkroomError):
    """A job that failed on its own account; others are not concerned."""


class LoadFailed(JobFailed):
    """`key` says what: its kind, and its name."""

    reason = "LOAD_FAILED"

    def __init__(self, message: str, key: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.key = tuple(key)


class PluginFailed(JobFailed):
    reason = "PLUGIN_FAILED"


class NonFinite(JobFailed):
    reason = "NON_FINITE"
