"""The exceptions of the client. Every failed call raises one of these:

DarkroomError                  .message .reason .code .violations .retry_after
├── InvalidOptions             a wrong argument of a client's constructor; also a ValueError
├── InvalidRequest             invalid fields or an undecodable image; .violations lists all of them
├── NotFound
│   ├── ModelNotFound
│   ├── PresetNotFound
│   ├── LoraNotFound
│   ├── ControlNetNotFound
│   ├── SchedulerNotFound
│   ├── PreprocessorNotFound
│   ├── TaskNotFound
│   └── RequestNotFound        no such job, or no longer
├── UnsupportedCombination     valid fields that the model does not support together
├── RequestIdInUse             another request has this request_id
├── NotImplementedYet          not offered by this server; .violations may name the field
├── ResourceExhausted
│   ├── QueueFull              try again after .retry_after seconds
│   ├── KeptJobsFull           too many kept jobs have not ended
│   ├── JobLogFull             no room on the server's disk for a kept job
│   ├── OutOfMemory
│   ├── SlowReader             the stream was not read
│   └── RequestTooLarge        over the server's limit in bytes
├── Unavailable
│   ├── ServerUnreachable      no server at the address, or the connection was lost
│   ├── Starting               its models are being loaded
│   ├── ShuttingDown
│   ├── DeviceLost
│   └── JobLogUnavailable      no job can be kept: the server's log of them cannot be used
├── DeadlineExceeded           the `timeout` expired
│   ├── DeadlineUnreachable    it would, by the server's estimate, as other jobs are before this one
│   └── DeadlineTooShort       it would, by the server's estimate, even without other jobs
├── Cancelled                  by this client or another one
├── Unauthenticated            token missing or not valid
├── PermissionDenied           a user's token, where an operator's is needed
└── JobFailed
    ├── LoadFailed             a model, LoRA or ControlNet failed to load
    ├── PluginFailed
    └── NonFinite              NaN or infinity in the model's output
"""

from collections.abc import Iterable
from typing import NamedTuple


class Violation(NamedTuple):
    """An invalid field of a request, and why."""

    field: str  # the field's path, for instance "parameters.width"
    description: str

    def __str__(self) -> str:
        return f"{self.field}: {self.description}" if self.field else self.description


class DarkroomError(Exception):
    """Base class of all failures of calls."""

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        code: str = "",
        violations: Iterable[Violation] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason  # the cause for programs, for instance "MODEL_NOT_FOUND"; empty if the server gave none
        self.code = code  # the gRPC status code, for instance "NOT_FOUND"; empty if no call was made
        self.violations = tuple(violations)
        self.retry_after = retry_after  # seconds; None if the server gave no delay

    def __str__(self) -> str:
        unmentioned = [violation for violation in self.violations if violation.description not in self.message]
        if len(self.violations) > 1 and not unmentioned:  # the message lists them on one line
            return "\n  ".join(["the request is not valid", *map(str, self.violations)])
        return "\n  ".join([self.message, *map(str, unmentioned)])


class InvalidOptions(DarkroomError, ValueError):
    """An argument of a client's constructor is not valid."""


class InvalidRequest(DarkroomError):
    """The request is invalid; `violations` lists every invalid field."""


class NotFound(DarkroomError):
    """The server has nothing of a name in the request."""


class ModelNotFound(NotFound):
    """The server has no such model."""


class PresetNotFound(NotFound):
    """The model has no such preset."""


class LoraNotFound(NotFound):
    """The server has no such LoRA."""


class ControlNetNotFound(NotFound):
    """The server has no such ControlNet."""


class SchedulerNotFound(NotFound):
    """The server has no such scheduler."""


class PreprocessorNotFound(NotFound):
    """The server has no such preprocessor."""


class TaskNotFound(NotFound):
    """The server has no such task."""


class RequestNotFound(NotFound):
    """The server has no job of this request_id, or no longer."""


class UnsupportedCombination(DarkroomError):
    """The fields are valid, but the model does not support their combination."""


class RequestIdInUse(DarkroomError):
    """Another request already has this request_id: an active job's, or a kept one's."""


class NotImplementedYet(DarkroomError):
    """Part of the API that this server does not offer yet."""


class ResourceExhausted(DarkroomError):
    """The server lacks the resources for the job."""


class QueueFull(ResourceExhausted):
    """The job queue is full; try again after `retry_after` seconds."""


class KeptJobsFull(ResourceExhausted):
    """Kept jobs that have not ended take all the room; try again after `retry_after` seconds."""


class JobLogFull(ResourceExhausted):
    """The server's disk has no room for a kept job."""


class OutOfMemory(ResourceExhausted):
    """The job does not fit into the device's memory."""


class SlowReader(ResourceExhausted):
    """The stream was not read, and the server gave the job up."""


class RequestTooLarge(ResourceExhausted):
    """The request has more bytes than the server takes."""


class Unavailable(DarkroomError):
    """The server cannot accept or finish the job now."""


class ServerUnreachable(Unavailable):
    """There is no server at the address, or the connection was lost."""


class Starting(Unavailable):
    """The server is starting: it opens and loads its models."""


class ShuttingDown(Unavailable):
    """The server is draining: it finishes its jobs and accepts no new ones."""


class DeviceLost(Unavailable):
    """The server's device failed; the server restarts."""


class JobLogUnavailable(Unavailable):
    """No job can be kept, as the server's log of them cannot be used."""


class DeadlineExceeded(DarkroomError):
    """The job exceeded its `timeout`."""


class DeadlineUnreachable(DeadlineExceeded):
    """Other jobs are before this one: by the server's estimate it would exceed its `timeout`, and was not begun. The
    queue may be shorter after `retry_after` seconds."""


class DeadlineTooShort(DeadlineExceeded):
    """By the server's estimate the job would exceed its `timeout` even without other jobs, and was not begun."""


class Cancelled(DarkroomError):
    """The job was cancelled."""


class Unauthenticated(DarkroomError):
    """The token is missing, or not valid."""


class PermissionDenied(DarkroomError):
    """The call needs an operator's token, and this is a user's."""


class JobFailed(DarkroomError):
    """The job failed on the server."""


class LoadFailed(JobFailed):
    """A model, LoRA or ControlNet failed to load."""


class PluginFailed(JobFailed):
    """A plugin failed."""


class NonFinite(JobFailed):
    """The model's output contains NaN or infinity."""
