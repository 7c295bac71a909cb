"""A real server that stops and starts again, is busy, or is not there yet: clients find it without being made anew."""

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import PIL.Image
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from darkroom_client import AsyncClient, Client, QueueFull, ServerUnreachable, Unavailable
from tests.support import RunningServer, png

SERVICE = "darkroom.v1.ImageService"
LARGE = png(PIL.Image.frombytes("RGB", (200, 200), random.Random(0).randbytes(120_000)))


@pytest.fixture
def start(tiny_model):
    """Makes a server of the tiny model."""
    return lambda **settings: RunningServer(models=[{"name": "tiny", "path": tiny_model}], **settings)


def test_a_server_that_stops_and_starts_again(start):
    with start() as server:
        address = server.address
        client = Client(address)
        assert client.is_ready()
        assert client.generate("a", num_inference_steps=1).image()
    assert not client.is_ready()
    impatient = Client(address, retries=0)
    for _ in range(20):  # each attempt lengthens gRPC's own pause between two connections
        with pytest.raises(ServerUnreachable):
            impatient.models()
        threading.Event().wait(0.1)
    with pytest.raises(ServerUnreachable, match="no Darkroom server answers"):
        impatient.wait_for_server(timeout=0.5)
    with ThreadPoolExecutor(3) as pool:
        waiting = [
            pool.submit(client.wait_for_server, timeout=100),
            pool.submit(lambda: client.generate("a", num_inference_steps=1, timeout=100).image()),
            pool.submit(
                lambda: client.edit(LARGE, "a", width=32, height=32, num_inference_steps=1, timeout=100).image()
            ),
        ]
        with start(listen=address):
            assert Client(address, retries=0).models()  # a new client connects at once
            assert [type(each.result()).__name__ for each in waiting] == ["NoneType", "Image", "Image"]
            assert client.is_ready()
            impatient.wait_for_server()
            assert impatient.models()
    for each in (client, impatient):
        each.close()


def test_a_job_waits_for_its_place_in_a_full_queue(start):
    with start(limits={"max_queued_jobs": 1}) as server, Client(server.address) as client:
        with server.paused():
            first = client.generate("a", num_inference_steps=1)
            next(iter_of_first := iter(first))
            second = client.generate("a", num_inference_steps=1, timeout=100)
            with Client(server.address, retries=0) as impatient, pytest.raises(QueueFull):
                impatient.generate("a").image()
        assert second.image()
        assert list(iter_of_first)


@pytest.fixture
def loading():
    """A server that answers, and makes no pictures yet: its health service and its address."""
    servicer = health.HealthServicer()
    servicer.set(SERVICE, health_pb2.HealthCheckResponse.NOT_SERVING)
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield servicer, address
    server.stop(grace=0).wait()


def test_a_server_that_loads_its_models_is_waited_for(loading):
    servicer, address = loading
    with Client(address) as client:
        assert not client.is_ready()
        with pytest.raises(Unavailable, match="is not ready: it starts, or it stops"):
            client.wait_for_server(timeout=0.5)
        threading.Timer(0.3, servicer.set, [SERVICE, health_pb2.HealthCheckResponse.SERVING]).start()
        client.wait_for_server(timeout=100)
        assert client.is_ready()


def test_the_same_from_asyncio(loading):
    servicer, address = loading

    async def main():
        async with AsyncClient(address) as client:
            before = await client.is_ready()
            servicer.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
            await client.wait_for_server(timeout=None)
            return before, await client.is_ready()

    assert asyncio.run(main()) == (False, True)


class TestHealthOfTheCommandLine:
    """`darkroom health`, by exit codes as health checks read them."""

    @pytest.fixture
    def address(self, loading):
        return loading[1]

    def test_of_the_api_and_of_the_process(self, loading, darkroom):
        servicer, address = loading
        refused = darkroom("health", exit_code=1)
        assert refused.stderr == f"error: the Darkroom server at {address} is not ready: it starts, or it stops\n"
        assert darkroom("health", "--service", "").stdout == "serving\n"
        servicer.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        assert darkroom("health").stdout == "serving\n"
        servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert darkroom("health", "--service", "", exit_code=1).stdout == ""

    def test_of_what_is_not_there(self, darkroom):
        assert "has no service 'darkroom.v2'" in darkroom("health", "--service", "darkroom.v2", exit_code=1).stderr
        darkroom("health", "--timeout", "0", exit_code=1)
        refused = darkroom("health", "--address", "127.0.0.1:1", exit_code=1)
        assert "no Darkroom server answers" in refused.stderr


def test_health_of_a_real_server_needs_no_token(start, darkroom):
    tokens = [{"name": "me", "sha256": "0" * 64}]
    with start(tokens=tokens) as server:
        for service in ([], ["--service", ""]):
            assert darkroom("health", "--address", server.address, *service).stdout == "serving\n"
    assert "no Darkroom server answers" in darkroom("health", "--address", server.address, exit_code=1).stderr
