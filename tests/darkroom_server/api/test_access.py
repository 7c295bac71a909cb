"""Calls want a token, some of them an operator's, and a job belongs to the token that started it."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from darkroom.v1 import catalog_service_pb2 as catalog_pb
from darkroom.v1 import image_service_pb2 as image_pb
from tests.support import RunningServer, Stream, generate_request, refused, settle

BEARERS = {"user": "t0ken", "operator": "0perator"}


@pytest.fixture(scope="module")
def locked_server(tiny_model: Path) -> Iterator[RunningServer]:
    hashed = {role: hashlib.sha256(token.encode()).hexdigest() for role, token in BEARERS.items()}
    tokens = [{"name": role, "role": role, "sha256": each} for role, each in hashed.items()]
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], tokens=tokens) as server:
        yield server


TOKENS = {
    "none": None,
    "wrong": "Bearer wrong",
    "empty": "",
    "no word": "t0ken",
    "empty token": "Bearer ",
    "longer": "Bearer t0ken2",
    "basic": "Basic t0ken",
    "glued": "Bearert0ken",
    "twice": "Bearer Bearer t0ken",
    "hash": f"Bearer {hashlib.sha256(b't0ken').hexdigest()}",
}


@pytest.mark.parametrize("name", TOKENS)
def test_calls_without_the_token_are_refused(locked_server: RunningServer, name: str) -> None:
    token = TOKENS[name]
    metadata = [("authorization", token)] if token is not None else []
    reflection = reflection_pb2_grpc.ServerReflectionStub(locked_server.channel)
    ask = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    calls: list[Callable[[], Any]] = [
        lambda: list(locked_server.images.Generate(generate_request(), metadata=metadata)),
        lambda: locked_server.images.Cancel(image_pb.CancelRequest(request_id="x"), metadata=metadata),
        lambda: locked_server.catalog.ListModels(catalog_pb.ListModelsRequest(), metadata=metadata),
        lambda: list(locked_server.catalog.LoadModel(catalog_pb.LoadModelRequest(), metadata=metadata)),
        lambda: list(reflection.ServerReflectionInfo(ask, metadata=metadata)),
        lambda: locked_server.channel.unary_unary("/darkroom.v1.ImageService/Nope")(b"", metadata=metadata),
    ]
    for call in calls:
        failed = refused(call)
        assert (failed.code, failed.reason) == (StatusCode.UNAUTHENTICATED, "")
        assert "t0ken" not in failed.message
    settle(locked_server)


def health(server: RunningServer) -> int:
    stub = health_pb2_grpc.HealthStub(server.channel)
    return stub.Check(health_pb2.HealthCheckRequest(), timeout=20).status


@pytest.mark.parametrize("role", BEARERS)
def test_each_right_token_passes_and_health_needs_none(locked_server: RunningServer, role: str) -> None:
    metadata = [("authorization", f"Bearer {BEARERS[role]}")]
    call = locked_server.images.Generate(generate_request(num_inference_steps=1), metadata=metadata, timeout=20)
    assert Stream(call).read().kinds[-1] == "completed"
    assert locked_server.catalog.ListModels(catalog_pb.ListModelsRequest(), metadata=metadata).models
    assert health(locked_server) == health_pb2.HealthCheckResponse.SERVING
    settle(locked_server)


def test_a_job_belongs_to_the_token_that_started_it(locked_server: RunningServer) -> None:
    mine, yours = ([("authorization", f"Bearer {token}")] for token in BEARERS.values())
    long = generate_request(request_id="same", num_inference_steps=500)
    first = Stream(locked_server.images.Generate(long, metadata=mine, timeout=60))
    first.read_until("step")
    cancel = image_pb.CancelRequest(request_id="same")
    failed = refused(lambda: locked_server.images.Cancel(cancel, metadata=yours))
    assert (failed.code, failed.reason) == (StatusCode.NOT_FOUND, "REQUEST_NOT_FOUND")
    short = generate_request(request_id="same", num_inference_steps=1)
    other = Stream(locked_server.images.Generate(short, metadata=yours, timeout=60)).read()
    assert other.kinds[-1] == "completed"
    assert locked_server.images.Cancel(cancel, metadata=mine).cancelled
    assert refused(first.read).code == StatusCode.CANCELLED
    settle(locked_server)


def operators_calls(server: RunningServer, **options: Any) -> list[Callable[[], Any]]:
    return [
        lambda: list(server.catalog.LoadModel(catalog_pb.LoadModelRequest(model="none"), **options)),
        lambda: server.catalog.UnloadModel(catalog_pb.UnloadModelRequest(model="none"), **options),
    ]


def test_an_operators_calls_need_an_operators_token(locked_server: RunningServer, server: RunningServer) -> None:
    user, operator = ([("authorization", f"Bearer {token}")] for token in BEARERS.values())
    for call in operators_calls(locked_server, metadata=user):
        failed = refused(call)
        assert (failed.code, failed.reason) == (StatusCode.PERMISSION_DENIED, "OPERATOR_TOKEN_REQUIRED")
        assert failed.message == "this call wants an operator's token, and this is a user's"
    for call in (*operators_calls(locked_server, metadata=operator), *operators_calls(server)):  # or none on loopback
        assert refused(call).code == StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("method", "token", "code"),
    [
        ("ImageService/Edit", "wrong", StatusCode.UNAUTHENTICATED),
        ("ImageService/Cancel", "wrong", StatusCode.UNAUTHENTICATED),
        ("CatalogService/LoadModel", BEARERS["user"], StatusCode.PERMISSION_DENIED),
    ],
)
def test_a_token_is_looked_at_before_the_request_is_read(
    locked_server: RunningServer, method: str, token: str, code: StatusCode
) -> None:
    refusal = threading.Event()

    def unsent() -> Iterator[bytes]:
        refusal.wait(60)
        yield from ()

    call = locked_server.channel.stream_stream(f"/darkroom.v1.{method}")
    try:
        failed = refused(lambda: list(call(unsent(), metadata=[("authorization", f"Bearer {token}")], timeout=30)))
    finally:
        refusal.set()
    assert failed.code == code


@pytest.mark.parametrize("form", ["bearer {}", "BEARER {}", "Bearer  {}", "Bearer   {} "])
def test_the_scheme_may_be_written_in_any_case_and_with_any_spaces(locked_server: RunningServer, form: str) -> None:
    long = generate_request(request_id="spelled", num_inference_steps=500)
    started, spelled = ([("authorization", each.format(BEARERS["user"]))] for each in ("Bearer {}", form))
    job = Stream(locked_server.images.Generate(long, metadata=started, timeout=60))
    job.read_until("step")
    cancel = image_pb.CancelRequest(request_id="spelled")
    assert locked_server.images.Cancel(cancel, metadata=spelled).cancelled  # the same token: the same bearer's job
    assert refused(job.read).code == StatusCode.CANCELLED
    settle(locked_server)
