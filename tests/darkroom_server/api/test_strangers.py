"""What those without a token can make the server receive: next to nothing, and of one host little at once."""

import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import psutil
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc

from darkroom_server.api.access import HOST_CALLS, host_of
from tests.support import RunningServer, refused

MIB = 1024 * 1024
SERVER = """
import asyncio
from darkroom_server.api.door import Door
from darkroom_server.config.settings import Settings

async def main():
    door = Door(Settings(listen="127.0.0.1:0", tokens=[{"name": "me", "sha256": "0" * 64}]))
    await door.open()
    print(door.address, flush=True)
    await asyncio.to_thread(input)
    await door.close(0)

asyncio.run(main())
"""


@pytest.fixture
def door() -> Iterator[tuple[str, psutil.Process]]:
    """The door of a server in a process of its own: its address and the process."""
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().decode().strip(), psutil.Process(process.pid)
        process.stdin.write(b"\n")
        process.stdin.flush()


def test_large_health_checks_take_little_memory(door: tuple[str, psutil.Process]) -> None:
    """gRPC would receive them all at once: 20 of 31 MiB took a gigabyte."""
    address, process = door
    body, most, done = b"\n" + b"\xff" * (31 * MIB), [process.memory_info().rss], threading.Event()
    before = most[0]

    def measure() -> None:
        while not done.wait(0.005):
            most[0] = max(most[0], process.memory_info().rss)

    def check(_: int) -> StatusCode:
        with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            call = channel.unary_unary("/grpc.health.v1.Health/Check")
            return refused(lambda: call(body, timeout=100)).code

    with ThreadPoolExecutor(21) as pool:
        measuring = pool.submit(measure)
        codes = set(pool.map(check, range(20)))
        done.set()
        measuring.result()
    assert codes <= {StatusCode.RESOURCE_EXHAUSTED, StatusCode.INVALID_ARGUMENT}  # too large, or not here in a second
    assert most[0] - before < 400 * MIB
    with grpc.insecure_channel(address) as channel:
        ask = health_pb2.HealthCheckRequest()
        assert (
            health_pb2_grpc.HealthStub(channel).Check(ask, timeout=20).status == health_pb2.HealthCheckResponse.SERVING
        )


def test_a_check_that_never_arrives_is_ended(door: tuple[str, psutil.Process]) -> None:
    released = threading.Event()

    def unsent() -> Iterator[bytes]:
        released.wait(60)
        yield from ()

    with grpc.insecure_channel(door[0]) as channel:
        call = channel.stream_stream("/grpc.health.v1.Health/Check")
        try:
            failed = refused(lambda: list(call(unsent(), timeout=60)))
        finally:
            released.set()
    assert (failed.code, failed.message) == (StatusCode.INVALID_ARGUMENT, "the request did not arrive within 1 s")


def test_one_host_holds_so_many_health_calls_and_no_more(tiny_model: Path) -> None:
    token = hashlib.sha256(b"t0ken").hexdigest()
    models, tokens = [{"name": "tiny", "path": tiny_model}], [{"name": "me", "sha256": token}]
    with RunningServer(models=models, tokens=tokens) as server:
        stub = health_pb2_grpc.HealthStub(server.channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest(), timeout=60) for _ in range(HOST_CALLS)]
        for watch in watches:
            next(watch)
        failed = refused(lambda: stub.Check(health_pb2.HealthCheckRequest(), timeout=60))
        assert (failed.code, failed.reason) == (StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        for watch in watches:
            watch.cancel()


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.1:5000", "10.0.0.1"),
        ("ipv6:%5B::1%5D:5000", "0"),
        ("ipv6:[2001:db8:0:1::5]:5000", "20010db800000001"),
        ("ipv6:[2001:db8:0:1::6]:6000", "20010db800000001"),
        ("ipv6:%5B::ffff:10.0.0.1%5D:5000", "10.0.0.1"),
        ("ipv6:[fe80::1%25eth0]:5000", "fe80000000000000"),
        ("unix:", "unix"),
        ("unix:/run/darkroom.sock", "unix"),
    ],
)
def test_the_host_of_a_peer(peer: str, host: str) -> None:
    assert host_of(peer) == host
