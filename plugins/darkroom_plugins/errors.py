"""The errors that plugins raise, or see; free of gRPC.

DarkroomError
├── RequestRefused            the request itself, with the violations that say where
│   ├── InvalidRequest            a bad field
│   └── UnsupportedCombination    what the model cannot do
└── JobFailed
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


class UnsupportedCombination(RequestRefused):
    reason = "UNSUPPORTED_COMBINATION"


class JobFailed(DarkroomError):
    """A job that failed on its own account; others are not concerned."""


class PluginFailed(JobFailed):
    reason = "PLUGIN_FAILED"


class NonFinite(JobFailed):
    reason = "NON_FINITE"
