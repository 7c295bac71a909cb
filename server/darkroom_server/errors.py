"""The server's domain errors, beside those of the plugin contract, and the classification of exceptions.

DarkroomError                 (darkroom_plugins.errors, like all marked *)
├── RequestRefused *
│   ├── InvalidRequest *
│   ├── UnsupportedCombination *
│   ├── NotFound                  a name that the server does not offer
│   └── NotImplementedYet         a field or call that is not implemented yet
├── RequestIdInUse
├── ResourceExhausted
│   ├── QueueFull
│   ├── DeadlineUnreachable       the job would be done after its deadline, as others are before it
│   ├── KeptJobsFull              too many bytes of kept jobs that have not ended
│   ├── JobLogFull                no room on the disk for a kept job
│   ├── OutOfMemory
│   ├── RequestTooLarge           more bytes than `max_request_bytes`
│   └── OverTokenLimit            more than the token may ever have
├── Unavailable
│   ├── Starting
│   ├── ShuttingDown
│   ├── DeviceLost
│   └── JobLogUnavailable         the log of kept jobs cannot be used
├── Unauthenticated
├── PermissionDenied
│   ├── OperatorRequired          a user's token on an operator's call
│   └── ModelNotAllowed           not one of the token's models
├── DeadlineTooShort              the job would be done after its deadline, even without others
├── Cancelled
├── DeadlineExceeded
└── JobFailed *
    ├── PluginFailed *
    ├── NonFinite *
    ├── GivenUp                   a kept job, while which was done the server ended again and again
    ├── ReplicasLost              of a cluster: each one that did the job
    └── LoadFailed                a model or an asset does not load
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from darkroom_plugins.errors import (
    DarkroomError,
    JobFailed,
    PluginFailed,
    RequestRefused,
    Violation,
    is_device_lost,
    is_out_of_memory,
)

log = logging.getLogger(__name__)

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
    """A resource limit is exceeded; `retry_after` is in seconds, None if a retry cannot succeed."""

    retry_after: float | None = None


class QueueFull(ResourceExhausted):
    reason = "QUEUE_FULL"

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineUnreachable(ResourceExhausted):
    reason = "DEADLINE_UNREACHABLE"

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class KeptJobsFull(ResourceExhausted):
    reason = "KEPT_JOBS_FULL"
    retry_after = 5.0


class JobLogFull(ResourceExhausted):
    reason = "JOB_LOG_FULL"


class OutOfMemory(ResourceExhausted):
    reason = "OUT_OF_MEMORY"


class RequestTooLarge(ResourceExhausted):
    reason = "REQUEST_TOO_LARGE"


class OverTokenLimit(ResourceExhausted):
    """The request alone exceeds a limit of its token."""

    reason = "TOKEN_LIMIT"


class SlowReader(ResourceExhausted):
    """The client does not read its stream."""

    reason = "SLOW_READER"


class Unavailable(DarkroomError):
    """The server cannot serve now; `retry_after` is in seconds."""

    retry_after: float | None = 5.0


class Starting(Unavailable):
    reason = "STARTING"
    retry_after = 2.0


class ShuttingDown(Unavailable):
    reason = "SHUTTING_DOWN"


class DeviceLost(Unavailable):
    reason = "DEVICE_LOST"


class JobLogUnavailable(Unavailable):
    reason = "JOB_LOG_UNAVAILABLE"
    retry_after = None


class Unauthenticated(DarkroomError):
    pass


class PermissionDenied(DarkroomError):
    pass


class OperatorRequired(PermissionDenied):
    reason = "OPERATOR_TOKEN_REQUIRED"


class ModelNotAllowed(PermissionDenied):
    reason = "MODEL_NOT_ALLOWED"


class DeadlineTooShort(DarkroomError):
    reason = "DEADLINE_TOO_SHORT"


class Cancelled(DarkroomError):
    pass


class DeadlineExceeded(DarkroomError):
    pass


class GivenUp(JobFailed):
    reason = "GIVEN_UP"


class ReplicasLost(JobFailed):
    """Each replica of a cluster that did the job was lost, so others shall not try."""

    reason = "REPLICAS_LOST"


class LoadFailed(JobFailed):
    """A model or asset does not load; `key` is its kind and name."""

    reason = "LOAD_FAILED"

    def __init__(self, message: str, key: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.key = tuple(key)


def to_domain_error(error: BaseException) -> DarkroomError:
    """The domain error for an exception of a plugin or model; the traceback is logged, once, and not kept."""
    cause, found = error.__cause__ or error, classify(error)
    if isinstance(found, DeviceLost | PluginFailed) and cause is not found:
        log.error("%s", found, exc_info=cause)
    return forget_cause(found)


def forget_cause(error: DarkroomError) -> DarkroomError:
    """The error without cause, context and traceback, which would keep the batch's tensors alive."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def classify(error: BaseException) -> DarkroomError:
    """The domain error for an exception, without logging."""
    if isinstance(error, DarkroomError):
        return error.with_traceback(None)  # which would keep the batch's tensors alive
    if is_out_of_memory(error):
        return OutOfMemory(TOO_LITTLE_MEMORY)
    if is_device_lost(error):
        return DeviceLost("the device failed; the server will be restarted")
    return PluginFailed("a plugin or the model failed on this image")
