"""Every call of every service, by descriptor, made by everyone: what is not allowed is denied."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from grpc import StatusCode
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from darkroom.v1 import catalog_service_pb2, image_service_pb2
from tests.support import RunningServer, edit_request, generate_request, refused, settle

BEARERS = {"user": "t0ken", "operator": "0perator", "wrong": "wr0ng", "nobody": None}
ALL, KNOWN, OPERATORS, NOBODY = {*BEARERS}, {"user", "operator"}, {"operator"}, set[str]()
# Who may call what. A new call must be entered here, and in the server's own table.
MAY_CALL = {
    "grpc.health.v1.Health/Check": ALL,
    "grpc.health.v1.Health/Watch": ALL,
    "grpc.health.v1.Health/List": NOBODY,
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo": KNOWN,
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": KNOWN,
    "darkroom.v1.ImageService/Generate": KNOWN,
    "darkroom.v1.ImageService/Edit": KNOWN,
    "darkroom.v1.ImageService/Watch": KNOWN,
    "darkroom.v1.ImageService/Cancel": KNOWN,
    "darkroom.v1.ImageService/ListJobs": KNOWN,
    "darkroom.v1.ImageService/GetJob": KNOWN,
    "darkroom.v1.ImageService/Preprocess": KNOWN,
    "darkroom.v1.CatalogService/GetServerInfo": KNOWN,
    "darkroom.v1.CatalogService/ListModels": KNOWN,
    "darkroom.v1.CatalogService/ListTasks": KNOWN,
    "darkroom.v1.CatalogService/ListSchedulers": KNOWN,
    "darkroom.v1.CatalogService/ListLoras": KNOWN,
    "darkroom.v1.CatalogService/ListControlNets": KNOWN,
    "darkroom.v1.CatalogService/ListPreprocessors": KNOWN,
    "darkroom.v1.CatalogService/LoadModel": OPERATORS,
    "darkroom.v1.CatalogService/UnloadModel": OPERATORS,
    "darkroom.v1.CatalogService/GetServerLoad": OPERATORS,
    "darkroom.v1.CatalogService/RescanAssets": OPERATORS,
}
DENIED = {StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED, StatusCode.UNIMPLEMENTED}


@pytest.fixture(scope="module")
def locked(tiny_model: Path, tiny_v_model: Path) -> Iterator[RunningServer]:
    sums = {name: hashlib.sha256(token.encode()).hexdigest() for name, token in BEARERS.items() if token}
    tokens: list[dict[str, Any]] = [{"name": name, "role": name, "sha256": sums[name]} for name in ("user", "operator")]
    limited = hashlib.sha256(b"l1mited").hexdigest()
    limits = {"max_jobs": 1, "max_pixels": 2 * 32 * 32 * 4, "models": ["tiny-v"]}
    tokens.append({"name": "limited", "role": "operator", "sha256": limited, **limits})
    models = [{"name": "tiny", "path": tiny_model}, {"name": "tiny-v", "path": tiny_v_model}]
    with RunningServer(models=models, tokens=tokens) as server:
        yield server


def bearing(token: str | None) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")] if token else []


LIMITED = bearing("l1mited")


def services(server: RunningServer) -> list[str]:
    """The names of all services that the server has, as it says itself."""
    stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    ask = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    (answer,) = stub.ServerReflectionInfo(ask, metadata=bearing(BEARERS["user"]), timeout=20)
    return [each.name for each in answer.list_services_response.service]


def methods(server: RunningServer) -> set[str]:
    """All methods of all services, by the descriptors."""
    pool = DescriptorPool()
    for module in (image_service_pb2, catalog_service_pb2, health_pb2, reflection_pb2):
        add(pool, module.DESCRIPTOR)
    found = set()
    for name in services(server):
        described = (
            "grpc.reflection.v1alpha.ServerReflection" if name == "grpc.reflection.v1.ServerReflection" else name
        )
        found |= {f"{name}/{method.name}" for method in pool.FindServiceByName(described).methods}
    return found


def add(pool: DescriptorPool, file: Any) -> None:
    for each in file.dependencies:
        add(pool, each)
    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    pool.Add(proto)


def test_every_call_has_a_rule(locked: RunningServer) -> None:
    assert methods(locked) == set(MAY_CALL)


@pytest.mark.parametrize("caller", BEARERS)
@pytest.mark.parametrize("method", MAY_CALL)
def test_every_call_by_everyone(locked: RunningServer, method: str, caller: str) -> None:
    """With a request that is no message: whoever may call is told that, all others that they may not."""
    call = locked.channel.stream_stream(f"/{method}")
    try:
        list(call(iter([b"\xff"]), metadata=bearing(BEARERS[caller]), timeout=20))
        code = StatusCode.OK
    except grpc.RpcError as error:
        code = error.code()
    if caller in MAY_CALL[method]:
        assert code == StatusCode.INVALID_ARGUMENT
    elif caller in KNOWN:
        assert code == (StatusCode.UNIMPLEMENTED if MAY_CALL[method] is NOBODY else StatusCode.PERMISSION_DENIED)
    else:
        assert code == StatusCode.UNAUTHENTICATED


def test_without_tokens_everyone_on_the_machine_is_an_operator(server: RunningServer) -> None:
    for method, callers in MAY_CALL.items():
        call = server.channel.stream_stream(f"/{method}")
        failed = refused(lambda call=call: list(call(iter([b"\xff"]), timeout=20)))
        assert failed.code == (StatusCode.INVALID_ARGUMENT if callers else StatusCode.UNIMPLEMENTED)


class TestLimitsOfATokens:
    def test_models(self, locked: RunningServer) -> None:
        def listed(metadata: Any) -> list[str]:
            answer = locked.catalog.ListModels(catalog_service_pb2.ListModelsRequest(), metadata=metadata, timeout=20)
            return [each.name for each in answer.models]

        assert listed(LIMITED) == ["tiny-v"]
        assert listed(bearing(BEARERS["user"])) == ["tiny", "tiny-v"]
        unload, load = catalog_service_pb2.UnloadModelRequest, catalog_service_pb2.LoadModelRequest
        for model in ("tiny", "", "none"):  # the default, and one that does not exist, are not told apart
            request = generate_request(model=model, num_inference_steps=1)
            failed = refused(lambda r=request: list(locked.images.Generate(r, metadata=LIMITED, timeout=20)))
            assert (failed.code, failed.reason) == (StatusCode.PERMISSION_DENIED, "MODEL_NOT_ALLOWED")
            assert failed.message.endswith("it may use: tiny-v")
        for call in (
            lambda: locked.catalog.UnloadModel(unload(model="tiny"), metadata=LIMITED, timeout=20),
            lambda: list(locked.catalog.LoadModel(load(model="tiny"), metadata=LIMITED, timeout=20)),
        ):
            assert refused(call).reason == "MODEL_NOT_ALLOWED"
        settle(locked)

    def test_jobs_at_once(self, locked: RunningServer) -> None:
        request = generate_request(model="tiny-v", num_inference_steps=500)
        first = locked.images.Generate(request, metadata=LIMITED, timeout=60)
        next(first)
        failed = refused(lambda: list(locked.images.Generate(request, metadata=LIMITED, timeout=60)))
        assert (failed.code, failed.reason) == (StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert failed.message == "this token may have 1 jobs at once, and has 1"
        assert failed.retry
        other = generate_request(model="tiny-v", num_inference_steps=1)
        assert list(locked.images.Generate(other, metadata=bearing(BEARERS["user"]), timeout=60))
        first.cancel()
        settle(locked)

    def test_pixels(self, locked: RunningServer) -> None:
        fits = {"model": "tiny-v", "num_inference_steps": 1, "width": 64, "height": 64}
        assert list(locked.images.Generate(generate_request(**fits, num_images=2), metadata=LIMITED, timeout=60))
        large = generate_request(**fits, num_images=3)
        failed = refused(lambda: list(locked.images.Generate(large, metadata=LIMITED, timeout=60)))
        assert (failed.code, failed.reason, failed.retry) == (StatusCode.RESOURCE_EXHAUSTED, "TOKEN_LIMIT", None)
        assert failed.message == "this token may have 8192 pixels at once, width x height x num_images, not 12288"
        settle(locked)


def test_small_requests_are_refused_when_they_are_large(locked: RunningServer) -> None:
    """Where no pictures are in them."""
    cancel = image_service_pb2.CancelRequest(request_id="x" * 100_000)
    failed = refused(lambda: locked.images.Cancel(cancel, metadata=bearing(BEARERS["user"]), timeout=20))
    assert (failed.code, failed.reason) == (StatusCode.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE")
    edit = edit_request(image=b"x" * 100_000)
    failed = refused(lambda: list(locked.images.Edit(edit, metadata=bearing(BEARERS["user"]), timeout=20)))
    assert failed.code == StatusCode.INVALID_ARGUMENT
    settle(locked)
