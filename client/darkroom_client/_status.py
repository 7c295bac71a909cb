"""Maps gRPC statuses to the exceptions in `errors`."""

from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from darkroom_client import errors
from darkroom_client._address import proxy_of

RPC_ERRORS = (grpc.RpcError, grpc.aio.BaseError)  # what gRPC raises: a status, or its own failure
_BY_REASON: dict[str, type[errors.DarkroomError]] = {
    "INVALID_REQUEST": errors.InvalidRequest,
    "MODEL_NOT_FOUND": errors.ModelNotFound,
    "PRESET_NOT_FOUND": errors.PresetNotFound,
    "LORA_NOT_FOUND": errors.LoraNotFound,
    "CONTROLNET_NOT_FOUND": errors.ControlNetNotFound,
    "SCHEDULER_NOT_FOUND": errors.SchedulerNotFound,
    "PREPROCESSOR_NOT_FOUND": errors.PreprocessorNotFound,
    "TASK_NOT_FOUND": errors.TaskNotFound,
    "REQUEST_NOT_FOUND": errors.RequestNotFound,
    "UNSUPPORTED_COMBINATION": errors.UnsupportedCombination,
    "REQUEST_ID_IN_USE": errors.RequestIdInUse,
    "NOT_IMPLEMENTED": errors.NotImplementedYet,
    "QUEUE_FULL": errors.QueueFull,
    "DEADLINE_UNREACHABLE": errors.DeadlineUnreachable,
    "DEADLINE_TOO_SHORT": errors.DeadlineTooShort,
    "KEPT_JOBS_FULL": errors.KeptJobsFull,
    "JOB_LOG_FULL": errors.JobLogFull,
    "OUT_OF_MEMORY": errors.OutOfMemory,
    "REQUEST_TOO_LARGE": errors.RequestTooLarge,
    "SLOW_READER": errors.SlowReader,
    "STARTING": errors.Starting,
    "SHUTTING_DOWN": errors.ShuttingDown,
    "DEVICE_LOST": errors.DeviceLost,
    "JOB_LOG_UNAVAILABLE": errors.JobLogUnavailable,
    "LOAD_FAILED": errors.LoadFailed,
    "PLUGIN_FAILED": errors.PluginFailed,
    "NON_FINITE": errors.NonFinite,
}

_BY_CODE: dict[grpc.StatusCode, type[errors.DarkroomError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequest,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: errors.UnsupportedCombination,
    grpc.StatusCode.ALREADY_EXISTS: errors.RequestIdInUse,
    grpc.StatusCode.UNIMPLEMENTED: errors.NotImplementedYet,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: errors.ServerUnreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.CANCELLED: errors.Cancelled,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    grpc.StatusCode.INTERNAL: errors.JobFailed,
}


def to_exception(error: Exception, address: str, *, connected: bool) -> errors.DarkroomError:
    """The exception for one of RPC_ERRORS. `connected`: the server had answered before the call failed."""
    if isinstance(error, grpc.aio.UsageError):
        return closed(address)
    if not isinstance(error, grpc.aio.AioRpcError):
        return errors.DarkroomError(f"gRPC could not make the call to {address}: {error}"[:500])
    fields = _details(error)
    code = error.code()
    message = error.details() or code.name.replace("_", " ").lower()
    if _is_size_refusal(code, message):
        fields["reason"] = "REQUEST_TOO_LARGE"
        message = f"the request is larger than the server at {address} takes ({message})"
    kind = _BY_REASON.get(fields["reason"]) or _BY_CODE.get(code, errors.DarkroomError)
    if kind is errors.ServerUnreachable:
        message = _unreachable(message, address, connected=connected)
    elif kind is errors.DeadlineExceeded and "Deadline Exceeded" in message:  # in gRPC's words, at this end
        message = f"the time-out passed before the Darkroom server at {address} was done"
    return kind(message, code=code.name, **fields)


def closed(address: str) -> errors.DarkroomError:
    """The exception for a call of a closed client."""
    return errors.DarkroomError(f"this client of {address} is closed: make another")


def _is_size_refusal(code: grpc.StatusCode, message: str) -> bool:
    """Whether the server's gRPC refused the request's size, by itself and so without a reason."""
    return code is grpc.StatusCode.RESOURCE_EXHAUSTED and "SERVER: Received message larger than max" in message


def _unreachable(message: str, address: str, *, connected: bool) -> str:
    proxy = proxy_of(address)
    through = f" through the proxy {proxy}" if proxy else ""
    if connected:
        return f"the connection to the Darkroom server at {address}{through} was lost ({message})"
    return (
        f"no Darkroom server answers at {address}{through} ({message}); start one with `darkroom serve`, "
        "or name another by --address or DARKROOM_ADDRESS"
    )


def _details(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """Reason, violations and retry delay from the status details."""
    found: dict[str, Any] = {"reason": "", "violations": (), "retry_after": None}
    for detail in _packed_details(error):
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            found["reason"] = _unpacked(detail, error_details_pb2.ErrorInfo()).reason
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = _unpacked(detail, error_details_pb2.BadRequest()).field_violations
            found["violations"] = tuple(errors.Violation(each.field, each.description) for each in bad)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            delay = _unpacked(detail, error_details_pb2.RetryInfo()).retry_delay
            found["retry_after"] = delay.seconds + delay.nanos / 1e9
    return found


def _packed_details(error: Any) -> list[Any]:
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # details that contradict the status, for instance from a proxy
        return []
    return list(status.details) if status is not None else []


def _unpacked(detail: Any, message: Any) -> Any:
    detail.Unpack(message)
    return message
