"""Status mapping: errors to gRPC codes, google.rpc.Status details and trailers; and from statuses to errors."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from darkroom_plugins.errors import (
    DarkroomError,
    InvalidRequest,
    JobFailed,
    RequestRefused,
    UnsupportedCombination,
    Violation,
)
from darkroom_server import errors

DOMAIN = "darkroom"
DETAILS_KEY = "grpc-status-details-bin"
# Trailers are limited to some 8 KiB; they hold the message twice, percent-encoded and in the base64 details.
MAX_MESSAGE = 900  # bytes, percent-encoded
MAX_DETAILS = 3500  # bytes of violations

CODES: dict[type[DarkroomError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.NotImplementedYet: grpc.StatusCode.UNIMPLEMENTED,
    UnsupportedCombination: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DeadlineTooShort: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RequestIdInUse: grpc.StatusCode.ALREADY_EXISTS,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.Cancelled: grpc.StatusCode.CANCELLED,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    JobFailed: grpc.StatusCode.INTERNAL,
}


def code_of(error: DarkroomError) -> grpc.StatusCode:
    """The status code of the first class in the error's MRO that is in the table."""
    return next((CODES[c] for c in type(error).__mro__ if c in CODES), grpc.StatusCode.INTERNAL)


def outcome_of(error: DarkroomError) -> str:
    """Its reason, or without one its status code's name: what metrics and spans say of it."""
    return error.reason or code_of(error).name


def status_of(error: DarkroomError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str | bytes], ...]]:
    """Code, message and trailing metadata of an error, with the google.rpc.Status details."""
    code, message = code_of(error), _short(str(error))
    status = status_pb2.Status(code=code.value[0], message=message)
    trailers: list[tuple[str, str | bytes]] = []
    if error.reason:
        _add(status, error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata))
    if isinstance(error, RequestRefused) and error.violations:
        _add(status, _bad_request(error.violations))
    if retry_after := getattr(error, "retry_after", None):
        delay = duration_pb2.Duration(seconds=int(retry_after), nanos=int(retry_after % 1 * 1e9))
        _add(status, error_details_pb2.RetryInfo(retry_delay=delay))
        trailers.append(("grpc-retry-pushback-ms", str(round(retry_after * 1000))))
    return code, message, ((DETAILS_KEY, status.SerializeToString()), *trailers)


def serialized(error: DarkroomError) -> bytes:
    """The google.rpc.Status of an error, of which `error_of` makes the error again."""
    details = dict(status_of(error)[2])[DETAILS_KEY]
    assert isinstance(details, bytes)
    return details


def error_of(status: status_pb2.Status) -> DarkroomError:
    """The error that a status was made of, as far as it says: one with the same status."""
    reason, metadata, violations, retry_after = "", {}, [], None
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo.FromString(detail.value)
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            found = error_details_pb2.BadRequest.FromString(detail.value).field_violations
            violations = [Violation(each.field, each.description) for each in found]
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry_after = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay.ToTimedelta().total_seconds()
    kind = _kind_of(status.code, reason)
    error = kind.__new__(kind)  # constructors take more than a status has
    error.args, error.metadata = (status.message,), metadata
    given = {"reason": reason, "violations": tuple(violations), "retry_after": retry_after}
    vars(error).update({name: value for name, value in given.items() if hasattr(kind, name) or value})
    return error


def _kind_of(code: int, reason: str) -> type[DarkroomError]:
    """The class of a status: by its reason, else by its code."""
    for kind in _kinds(DarkroomError):
        if reason and kind.reason == reason:
            return kind
    return next((kind for kind, each in CODES.items() if each.value[0] == code), JobFailed)


def _kinds(kind: type[DarkroomError]) -> Iterator[type[DarkroomError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _kinds(each)


def _short(message: str) -> str:
    """The message, truncated to MAX_MESSAGE percent-encoded bytes."""
    short = message[:MAX_MESSAGE]
    while len(quote(short, errors="replace")) > MAX_MESSAGE:
        short = short[: len(short) * 9 // 10]
    return short if short == message else short + "…"


def _bad_request(violations: tuple[Violation, ...]) -> error_details_pb2.BadRequest:
    """The first violations, up to MAX_DETAILS bytes."""
    request = error_details_pb2.BadRequest()
    for violation in violations:
        request.field_violations.add(field=violation.field, description=violation.description)
        if request.ByteSize() > MAX_DETAILS:
            del request.field_violations[-1]
            break
    return request


def _add(status: status_pb2.Status, detail: object) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)  # type: ignore[arg-type]
    status.details.append(packed)
