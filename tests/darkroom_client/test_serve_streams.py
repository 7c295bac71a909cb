"""`darkroom serve` with standard streams that nobody reads, that are full, or that are missing: it serves and stops."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from darkroom_client import Client

DARKROOM = str(Path(sys.executable).with_name("darkroom"))
SERVICE = "darkroom.v1.ImageService"


@contextlib.contextmanager
def full_pipe() -> Iterator[int]:
    """The end to write to of a pipe that takes nothing more."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(65_536))
    os.set_blocking(writer, True)
    yield writer
    os.close(reader)
    os.close(writer)


@contextlib.contextmanager
def full_disk() -> Iterator[int]:
    with open("/dev/full", "w") as full:
        yield full.fileno()


@pytest.mark.slow  # streams alone: tests/darkroom_server/observe/test_streams.py
@pytest.mark.parametrize("streams", ["unread", "full", "closed"])
def test_the_server_needs_no_reader(streams: str, tiny_model: Path, tmp_path: Path) -> None:
    address = f"unix:{tmp_path / 's'}"
    command = [DARKROOM, "serve", "--listen", address, "--model", f"tiny={tiny_model}"]
    if streams == "closed":
        command = ["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", *command]
    with (full_disk if streams == "full" else full_pipe)() as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink)
        try:
            with grpc.insecure_channel(address) as channel:
                ask = health_pb2.HealthCheckRequest(service=SERVICE)
                watch = health_pb2_grpc.HealthStub(channel).Watch(ask, timeout=100, wait_for_ready=True)
                while next(watch).status != health_pb2.HealthCheckResponse.SERVING:
                    pass
                watch.cancel()
            with Client(address) as client:
                for _ in range(3):
                    client.generate("x", num_inference_steps=1).image()
                assert client.models()[0].name == "tiny"
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
    assert os.listdir(tmp_path) == []
