"""The port answers while models are opened and loaded: a probe tells starting from dead, and calls are told to wait."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode, aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from darkroom.v1 import catalog_service_pb2 as catalog_pb
from darkroom.v1 import catalog_service_pb2_grpc, image_service_pb2_grpc
from darkroom_plugins import hookimpl
from darkroom_plugins.contract import Finisher
from darkroom_server.api.door import Door
from darkroom_server.config.settings import Settings
from tests.support import RunningServer, generate_request, refused

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
IMAGES, CATALOG = "darkroom.v1.ImageService", "darkroom.v1.CatalogService"


class Slow(Finisher):
    """Holds the opening of models, until the test lets it go on."""

    name = "slow"

    def __init__(self) -> None:
        self.reached, self.released = threading.Event(), threading.Event()

    def components(self, model: Any, files: Any, settings: Any) -> Mapping[str, Any]:
        self.reached.set()
        assert self.released.wait(60)
        return {}

    def finish(self, picture: Any, request: Any, parameters: Any) -> Any:
        return picture


class SlowPlugin:
    darkroom_api_version = 1

    def __init__(self) -> None:
        self.finisher = Slow()

    @hookimpl
    def darkroom_finishers(self) -> list[Finisher]:
        return [self.finisher]


@contextlib.contextmanager
def starting(tiny_model: Path, address: str, **settings: Any) -> Iterator[Slow]:
    """A server that opens its models until `released` is set, or the test is over."""
    plugin = SlowPlugin()
    server = RunningServer({"slow": plugin}, models=[{"name": "tiny", "path": tiny_model}], listen=address, **settings)
    with ThreadPoolExecutor(1) as pool:
        entering = pool.submit(server.__enter__)
        assert plugin.finisher.reached.wait(60)
        try:
            yield plugin.finisher
        finally:
            plugin.finisher.released.set()
            entering.result(60).__exit__()


def health(channel: grpc.Channel, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=20).status


def test_a_probe_tells_starting_from_dead(tiny_model: Path, tmp_path: Path) -> None:
    address = f"unix:{tmp_path / 's'}"
    with starting(tiny_model, address) as slow, grpc.insecure_channel(address) as channel:
        assert [health(channel, each) for each in ("", IMAGES, CATALOG)] == [SERVING, NOT_SERVING, NOT_SERVING]
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=IMAGES), timeout=60)
        assert next(watch).status == NOT_SERVING
        slow.released.set()
        assert next(watch).status == SERVING
        watch.cancel()
        assert [health(channel, each) for each in ("", IMAGES, CATALOG)] == [SERVING] * 3
        images = image_service_pb2_grpc.ImageServiceStub(channel)
        events = list(images.Generate(generate_request(num_inference_steps=1), timeout=60))
        assert events[-1].event.WhichOneof("event") == "completed"


def test_health_of_the_whole_server_can_follow_that_of_its_services(tiny_model: Path, tmp_path: Path) -> None:
    address = f"unix:{tmp_path / 's'}"
    with (
        starting(tiny_model, address, health_while_starting="not-serving") as slow,
        grpc.insecure_channel(address) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == NOT_SERVING
        slow.released.set()
        assert next(watch).status == SERVING
        watch.cancel()


def test_an_engine_that_goes_on_is_no_server_that_is_ready(tmp_path: Path) -> None:
    async def main() -> None:
        door = Door(Settings(listen=f"unix:{tmp_path / 's'}"))
        await door.open()
        for stalled in (True, False):
            door.report_stall(stalled)
        async with aio.insecure_channel(door.address) as channel:
            ask = health_pb2.HealthCheckRequest(service=IMAGES)
            assert (await health_pb2_grpc.HealthStub(channel).Check(ask, timeout=20)).status == NOT_SERVING
        await door.close(0)

    asyncio.run(main())


@pytest.mark.parametrize("tokens", [[], [{"name": "me", "sha256": "0" * 64}]], ids=["open", "with tokens"])
def test_calls_that_come_too_early_are_told_to_wait(tiny_model: Path, tmp_path: Path, tokens: list[Any]) -> None:
    address = f"unix:{tmp_path / 's'}"
    with starting(tiny_model, address, tokens=tokens), grpc.insecure_channel(address) as channel:
        images = image_service_pb2_grpc.ImageServiceStub(channel)
        catalog = catalog_service_pb2_grpc.CatalogServiceStub(channel)
        for call in (
            lambda: list(images.Generate(generate_request(), timeout=20)),
            lambda: catalog.ListModels(catalog_pb.ListModelsRequest(), timeout=20),
        ):
            failed = refused(call)
            if tokens:  # strangers are told nothing
                assert failed.code == StatusCode.UNAUTHENTICATED
                continue
            assert (failed.code, failed.reason) == (StatusCode.UNAVAILABLE, "STARTING")
            assert failed.retry
        failed = refused(lambda: channel.unary_unary("/other.Service/Call")(b"", timeout=20))
        assert failed.code == (StatusCode.UNAUTHENTICATED if tokens else StatusCode.UNIMPLEMENTED)
