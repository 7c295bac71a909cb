"""Every error has its status, that of the API's table, and no status is too large for gRPC."""

import re
import urllib.parse
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2
from grpc import StatusCode

from darkroom_plugins import errors as contract
from darkroom_server import errors
from darkroom_server.api.status import DETAILS_KEY, error_of, status_of
from tests.support import RunningServer, details, generate_request, refused

MAX_METADATA = 8192  # bytes: beyond, gRPC may turn any status into RESOURCE_EXHAUSTED
PROTO = Path(__file__).parents[3] / "protos/darkroom/v1/image_service.proto"
TABLE: dict[type[contract.DarkroomError], tuple[str, str]] = {
    contract.InvalidRequest: ("INVALID_ARGUMENT", "INVALID_REQUEST"),
    errors.NotFound: ("NOT_FOUND", "MODEL_NOT_FOUND"),
    contract.UnsupportedCombination: ("FAILED_PRECONDITION", "UNSUPPORTED_COMBINATION"),
    errors.RequestIdInUse: ("ALREADY_EXISTS", "REQUEST_ID_IN_USE"),
    errors.NotImplementedYet: ("UNIMPLEMENTED", "NOT_IMPLEMENTED"),
    errors.QueueFull: ("RESOURCE_EXHAUSTED", "QUEUE_FULL"),
    errors.DeadlineUnreachable: ("RESOURCE_EXHAUSTED", "DEADLINE_UNREACHABLE"),
    errors.DeadlineTooShort: ("FAILED_PRECONDITION", "DEADLINE_TOO_SHORT"),
    errors.KeptJobsFull: ("RESOURCE_EXHAUSTED", "KEPT_JOBS_FULL"),
    errors.JobLogFull: ("RESOURCE_EXHAUSTED", "JOB_LOG_FULL"),
    errors.OutOfMemory: ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY"),
    errors.SlowReader: ("RESOURCE_EXHAUSTED", "SLOW_READER"),
    errors.RequestTooLarge: ("RESOURCE_EXHAUSTED", "REQUEST_TOO_LARGE"),
    errors.Starting: ("UNAVAILABLE", "STARTING"),
    errors.ShuttingDown: ("UNAVAILABLE", "SHUTTING_DOWN"),
    errors.DeviceLost: ("UNAVAILABLE", "DEVICE_LOST"),
    errors.JobLogUnavailable: ("UNAVAILABLE", "JOB_LOG_UNAVAILABLE"),
    errors.DeadlineExceeded: ("DEADLINE_EXCEEDED", ""),
    errors.Cancelled: ("CANCELLED", ""),
    errors.Unauthenticated: ("UNAUTHENTICATED", ""),
    errors.OverTokenLimit: ("RESOURCE_EXHAUSTED", "TOKEN_LIMIT"),
    errors.OperatorRequired: ("PERMISSION_DENIED", "OPERATOR_TOKEN_REQUIRED"),
    errors.ModelNotAllowed: ("PERMISSION_DENIED", "MODEL_NOT_ALLOWED"),
    errors.LoadFailed: ("INTERNAL", "LOAD_FAILED"),
    errors.GivenUp: ("INTERNAL", "GIVEN_UP"),
    errors.ReplicasLost: ("INTERNAL", "REPLICAS_LOST"),
    contract.PluginFailed: ("INTERNAL", "PLUGIN_FAILED"),
    contract.NonFinite: ("INTERNAL", "NON_FINITE"),
}
RETRIED = {
    errors.QueueFull,
    errors.DeadlineUnreachable,
    errors.KeptJobsFull,
    errors.Starting,
    errors.ShuttingDown,
    errors.DeviceLost,
}


def leaves(kind: type[contract.DarkroomError]) -> set[type[contract.DarkroomError]]:
    """The classes of errors that are raised: those without classes of their own, of ours."""
    own = [each for each in kind.__subclasses__() if each.__module__ in (contract.__name__, errors.__name__)]
    return set().union(*(leaves(each) for each in own)) if own else {kind}


def make(kind: type[contract.DarkroomError]) -> contract.DarkroomError:
    violations = [contract.Violation("parameters.model", "nope")]
    if kind is errors.NotFound:
        return errors.NotFound("model", violations)
    return kind(violations) if issubclass(kind, contract.RequestRefused) else kind("what happened")


class Raised(grpc.RpcError):
    """An error's status as a client sees it."""

    def __init__(self, error: contract.DarkroomError) -> None:
        self._code, self._message, self._trailers = status_of(error)

    def code(self) -> StatusCode:
        return self._code

    def details(self) -> str:
        return self._message

    def trailing_metadata(self) -> Any:
        return self._trailers


def test_every_error_has_its_status() -> None:
    assert leaves(contract.DarkroomError) == set(TABLE)
    for kind, (code, reason) in TABLE.items():
        raised = Raised(make(kind))
        found, violations, retry = details(raised)
        assert (raised.code().name, found) == (code, reason), kind
        assert bool(violations) == issubclass(kind, contract.RequestRefused)
        assert (retry is not None) == (kind in RETRIED)
        pushback = dict(raised.trailing_metadata()).get("grpc-retry-pushback-ms")
        assert pushback == (None if retry is None else str(int(retry * 1000)))


def test_every_error_comes_back_from_its_status() -> None:
    for kind in TABLE:
        error = make(kind)
        error.metadata = {"plugin": "vignette"}
        status = status_of(error)
        found = error_of(status_pb2.Status.FromString(dict(status[2])[DETAILS_KEY]))
        assert status_of(found) == status, kind
        assert type(found) is kind


def test_the_api_documents_the_same_table() -> None:
    documented = re.findall(r"^//   .*\s([A-Z_]{6,})  +([A-Z_]{6,}|-)(  \(\+ RetryInfo\))?", PROTO.read_text(), re.M)
    rows = {(code, reason.strip("-")) for code, reason, _ in documented}
    ours = set(TABLE.values())
    kinds = {"MODEL", "PRESET", "LORA", "CONTROLNET", "SCHEDULER", "PREPROCESSOR", "TASK", "REQUEST"}
    assert rows == ours | {("NOT_FOUND", f"{kind}_NOT_FOUND") for kind in kinds}
    assert {reason for _, reason, retry in documented if retry} == {kind.reason for kind in RETRIED}


def metadata_size(message: str, trailers: dict[str, Any]) -> int:
    """The trailers' size as gRPC counts it: 32 bytes more for each, the message in percent-encoding."""
    encoded = urllib.parse.quote(message, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")
    every = {":status": "200", "content-type": "application/grpc", "grpc-status": "3", **trailers}
    return sum(len(k) + len(v) + 32 for k, v in every.items()) + len("grpc-message") + len(encoded) + 32


@pytest.mark.parametrize("letter", ["x", "é", "🎨", "%", '"', "\n"])
def test_no_status_is_too_large(letter: str) -> None:
    long = letter * 10_000
    for error in (
        contract.InvalidRequest([contract.Violation(long[:200], long[:200])] * 50),
        contract.InvalidRequest([contract.Violation(long, long)]),
        contract.UnsupportedCombination([contract.Violation("x", long)] * 3),
        errors.RequestIdInUse(long),
        errors.QueueFull(long),
    ):
        raised = Raised(error)
        size = metadata_size(raised.details(), dict(raised.trailing_metadata()))
        assert size < MAX_METADATA
        assert details(raised)[0] == error.reason


@pytest.mark.parametrize("letter", ["x", "é", "🎨", "%", '"', "\n"])
def test_details_stay_small_whatever_comes(clean: RunningServer, letter: str) -> None:
    """gRPC refuses large metadata at random between its soft and its hard limit: so the size counts, too."""
    long = letter * 5000
    request = generate_request(
        model=long, task=long, scheduler=long, width=33, extensions={f"{i:03}{long}": {long: 1} for i in range(100)}
    )
    for _ in range(10):
        failed = refused(lambda: clean.start(request).read())
        assert (failed.code, failed.reason) == (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
        assert len(failed.violations) >= 5
    size = metadata_size(failed.message, failed.trailers)
    assert size < MAX_METADATA


def test_violations_keep_within_their_limit(clean: RunningServer) -> None:
    extensions = {f"{i:03}": {} for i in range(100)}
    failed = refused(lambda: clean.generate(extensions=extensions))
    assert (failed.code, failed.reason) == (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert 10 <= len(failed.violations) <= 50
    size = metadata_size(failed.message, failed.trailers)
    assert size < MAX_METADATA
    too_many = refused(lambda: clean.generate(extensions={f"{i}": {} for i in range(101)}))
    assert too_many.paths == {"parameters.extensions"}
