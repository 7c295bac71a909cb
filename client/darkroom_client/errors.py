"""The exceptions of the client. Every failure of a call leaves the client as one of these:

DarkroomError                  .message .reason .code .violations .retry_after
├── InvalidRequest             a bad field, an image that cannot be decoded; .violations names every field
├── NotFound
│   ├── ModelNotFound
│   ├── LoraNotFound
│   ├── ControlNetNotFound
│   ├── SchedulerNotFound
│   ├── PreprocessorNotFound
│   ├── TaskNotFound
│   └── RequestNotFound        no such job (any more)
├── UnsupportedCombination     the model cannot do this together
├── RequestIdInUse             an active job has this request_id
├── NotImplementedYet          the server does not offer this yet; .violations may name the field
├── ResourceExhausted
│   ├── QueueFull              try again after .retry_after seconds
│   └── OutOfMemory
├── Unavailable
│   ├── ServerUnreachable      no server answers, or the connection was lost
│   ├── ShuttingDown
│   └── DeviceLost
├── DeadlineExceeded           the `timeout` has passed
├── Cancelled                  by this client, or by a Cancel from elsewhere
├── Unauthenticated            no token, or not one that is valid for the call
└── JobFailed
    ├── LoadFailed             a model or what goes with it does not load
    ├── PluginFailed
    └── NonFinite              the model's result is not finite
"""

from collections.abc import Iterable
from typing import NamedTuple


class Violation(NamedTuple):
    """What is wrong with one field of a request."""

    field: str  # the field's path, for instance "parameters.width"
    description: str

    def __str__(self) -> str:
        return f"{self.field}: {self.description}" if self.field else self.description


class DarkroomError(Exception):
    """Anything that went wrong with a call to the server."""

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
        self.reason = reason  # the server's word for it, for instance "MODEL_NOT_FOUND"; empty where it gave none
        self.code = code  # the gRPC status code, for instance "NOT_FOUND"; empty where no call was made
        self.violations = tuple(violations)
        self.retry_after = retry_after  # seconds; None where the server gave no hint

    def __str__(self) -> str:
        untold = [violation for violation in self.violations if violation.description not in self.message]
        if len(self.violations) > 1 and not untold:  # all of them stand in the message, in a row
            return "\n  ".join(["the request is not valid", *map(str, self.violations)])
        return "\n  ".join([self.message, *map(str, untold)])


class InvalidRequest(DarkroomError):
    """The request is wrong; `violations` holds every field at fault."""


class NotFound(DarkroomError):
    """The request names something that the server does not have."""


class ModelNotFound(NotFound):
    """The server offers no such model."""


class LoraNotFound(NotFound):
    """The server offers no such LoRA."""


class ControlNetNotFound(NotFound):
    """The server offers no such ControlNet."""


class SchedulerNotFound(NotFound):
    """The server has no such scheduler."""


class PreprocessorNotFound(NotFound):
    """The server has no such preprocessor."""


class TaskNotFound(NotFound):
    """The server knows no such task."""


class RequestNotFound(NotFound):
    """The server has no job of this request_id, or no longer keeps it."""


class UnsupportedCombination(DarkroomError):
    """Each field is fine, but the model cannot do them together."""


class RequestIdInUse(DarkroomError):
    """An active job has this request_id already."""


class NotImplementedYet(DarkroomError):
    """The API describes it, and this server does not offer it yet."""


class ResourceExhausted(DarkroomError):
    """The server has no room for the job."""


class QueueFull(ResourceExhausted):
    """Too many jobs wait already; `retry_after` says when to try again."""


class OutOfMemory(ResourceExhausted):
    """The job does not fit into the device's memory."""


class Unavailable(DarkroomError):
    """The server cannot take or finish the job now."""


class ServerUnreachable(Unavailable):
    """No server answers at the address, or the connection to it was lost."""


class ShuttingDown(Unavailable):
    """The server is draining and takes no new jobs."""


class DeviceLost(Unavailable):
    """The server's device failed; it is about to restart."""


class DeadlineExceeded(DarkroomError):
    """The job was not done within its `timeout`."""


class Cancelled(DarkroomError):
    """The job was cancelled."""


class Unauthenticated(DarkroomError):
    """The token is missing or not valid for this call."""


class JobFailed(DarkroomError):
    """The server failed on this job."""


class LoadFailed(JobFailed):
    """A model, or what goes with it, does not load."""


class PluginFailed(JobFailed):
    """A plugin failed on this job."""


class NonFinite(JobFailed):
    """The model's result is not finite."""
