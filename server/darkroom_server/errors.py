"""The server's errors beside those of the plugin contract, and what any exception means in them.

DarkroomError                 (darkroom_plugins.errors, as all that are marked *)
├── RequestRefused *
│   ├── InvalidRequest *
│   ├── UnsupportedCombination *
│   ├── NotFound                  a name that the server does not offer
│   └── NotImplementedYet         a field or call that is not implemented yet
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
└── JobFailed *
    ├── PluginFailed *
    ├── NonFinite *
    └── LoadFailed                a model or an asset does not load
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from darkroom_plugins.errors import DarkroomError, JobFailed, PluginFailed, RequestRefused, Violation

log = logging.getLogger(__name__)

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED")  # CUDA; the CPU's allocator; cuBLAS, cuDNN
TOO_LITTLE_MEMORY = "the device has too little memory for this image"


class NotFound(RequestRefused):
    """A name that the server does not offer; `kind` is for instance ``"model"``."""

    def __init__(self, kind: str, violations: Sequence[Violation] = (), message: str = "") -> None:
        super().__init__(violations, message)
        self.reason = f"{kind.upper()}_NOT_FOUND"  # type: ignore[misc]


class NotImplementedYet(RequestRefused):
    reason = "NOT_IMPLEMENTED"


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


class LoadFailed(JobFailed):
    """`key` is what does not load: its kind, and its name."""

    reason = "LOAD_FAILED"

    def __init__(self, message: str, key: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.key = tuple(key)


def to_domain_error(error: Exception) -> DarkroomError:
    """The domain's error for whatever a plugin or a model raised; its own words go to the log alone."""
    found = classify(error)
    if isinstance(found, DeviceLost | PluginFailed) and found is not error:
        log.error("%s", found, exc_info=error)
    return found


def classify(error: Exception) -> DarkroomError:
    """The same without logging."""
    import torch  # which those who only name errors go without

    if isinstance(error, DarkroomError):
        return error.with_traceback(None)  # which would keep the batch's tensors
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(t in text for t in OUT_OF_MEMORY):
        return OutOfMemory(TOO_LITTLE_MEMORY)
    if isinstance(error, getattr(torch, "AcceleratorError", ())) or "CUDA error" in text:
        return DeviceLost("the device failed; the server will be restarted")
    return PluginFailed("a plugin or the model failed on this image")
