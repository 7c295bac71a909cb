"""A server owns its address: nobody takes it over, and what a killed one left is no obstacle."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from darkroom_server.api.listening import CannotListen, Listener
from darkroom_server.config.address import parse_address

IN_USE = "another server is listening there"


@contextlib.asynccontextmanager
async def listening(listen: str) -> AsyncIterator[str]:
    """A server that answers health; gives its address."""
    server, listener = aio.server(options=[("grpc.so_reuseport", 0)]), Listener(listen)
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    await listener.bind(server)
    await server.start()
    try:
        yield listener.address
    finally:
        await server.stop(0)
        listener.close()


async def refusal(listen: str) -> str:
    with pytest.raises(CannotListen) as caught:
        async with listening(listen):
            pass
    return str(caught.value)


async def answers(address: str) -> bool:
    async with aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=20, wait_for_ready=True)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def test_a_second_server_on_a_unix_socket_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        address = f"unix:{tmp_path / 's'}"
        async with listening(address):
            for _ in range(2):
                assert await refusal(address) == f"cannot listen on {address}: {IN_USE}"
            assert await answers(address)
        assert os.listdir(tmp_path) == []
        async with listening(address):
            assert await answers(address)

    asyncio.run(main())


def test_a_server_that_stops_leaves_the_next_ones_socket(tmp_path: Path) -> None:
    """gRPC deletes the file of a socket at some time after its server has stopped."""

    async def main() -> None:
        address = f"unix:{tmp_path / 's'}"
        first, listener = aio.server(), Listener(address)
        await listener.bind(first)
        await first.start()
        listener.close()  # before gRPC has let go
        async with listening(address):
            await first.stop(0)
            del first
            assert await answers(address)

    asyncio.run(main())


def test_the_socket_of_a_killed_server_is_replaced(tmp_path: Path) -> None:
    code = """
        import asyncio, sys
        from grpc import aio
        from darkroom_server.api.listening import Listener

        async def main():
            server = aio.server()
            await Listener(sys.argv[1]).bind(server)
            await server.start()
            print("listening", flush=True)
            await asyncio.sleep(60)

        asyncio.run(main())
    """
    address = f"unix:{tmp_path / 's'}"
    command = [sys.executable, "-c", textwrap.dedent(code), address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "listening\n"
            assert asyncio.run(refusal(address)).endswith(IN_USE)
        finally:
            process.kill()
    assert sorted(os.listdir(tmp_path)) == ["s", "s.lock"]

    async def main() -> None:
        async with listening(address):
            assert await answers(address)

    asyncio.run(main())
    assert os.listdir(tmp_path) == []


def test_a_file_that_is_no_socket_stays(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("mine")
    assert asyncio.run(refusal(f"unix:{tmp_path / 's'}")).endswith("there is a file that is no socket")
    assert (tmp_path / "s").read_text() == "mine"


def test_a_socket_of_another_program_that_listens_stays(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(tmp_path / "s"))
        other.listen()
        assert asyncio.run(refusal(f"unix:{tmp_path / 's'}")).endswith(IN_USE)
        assert (tmp_path / "s").exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_in_use(host: str) -> None:
    """Also if it is in use at one address of the name alone."""

    async def main() -> None:
        async with listening("127.0.0.1:0") as address:
            port = parse_address(address).port
            assert await refusal(f"{host}:{port}") == f"cannot listen on {host}:{port}: Address already in use"
            assert await answers(address)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("listen", "reason"),
    [
        ("203.0.113.7:0", "Cannot assign requested address"),
        ("name.invalid:0", ("Name or service not known", "Temporary failure in name resolution")),
        ("unix:no/such/folder/s", "No such file or directory"),
    ],
)
def test_the_reason_is_the_systems(listen: str, reason: str | tuple[str, ...]) -> None:
    assert asyncio.run(refusal(listen)).endswith(reason)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX") or sys.platform != "linux", reason="abstract sockets are Linux's")
def test_an_abstract_socket() -> None:
    async def main() -> None:
        address = f"unix-abstract:darkroom-test-{os.getpid()}"
        async with listening(address):
            assert (await refusal(address)).endswith("Address already in use")
            assert await answers(address)

    asyncio.run(main())


def test_a_free_port_is_found_and_named() -> None:
    async def main() -> None:
        for host in ("127.0.0.1", "localhost"):
            async with listening(f"{host}:0") as address:
                assert parse_address(address).port > 0
                assert await answers(address)

    asyncio.run(main())
