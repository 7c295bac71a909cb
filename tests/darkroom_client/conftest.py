"""A server with scripted answers, clients of it, and the command line."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from darkroom.v1 import catalog_service_pb2_grpc, image_service_pb2_grpc
from darkroom_client import AsyncClient, Client
from darkroom_client.cli import app
from tests.darkroom_client.browsing import Browser
from tests.darkroom_client.scripted import Events, ScriptedServer, abort


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One browser for all tests of a process."""
    with Browser() as browser:
        yield browser


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    servicer = ScriptedServer()
    server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
    image_service_pb2_grpc.add_ImageServiceServicer_to_server(servicer, server)
    catalog_service_pb2_grpc.add_CatalogServiceServicer_to_server(servicer, server)
    servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield servicer
    server.stop(grace=0).wait()


@pytest.fixture
def address(scripted: ScriptedServer) -> str:
    """Where the clients and the command line of a module find their server."""
    return scripted.address


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


@pytest.fixture
def async_client(address: str) -> AsyncClient:
    """An AsyncClient that the test closes in its own loop."""
    return AsyncClient(address)


@pytest.fixture
def darkroom(address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Runs a command in an empty folder."""
    monkeypatch.setenv("DARKROOM_ADDRESS", address)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, exit_code: int = 0, stdin: bytes | None = None) -> Any:
        result = CliRunner().invoke(app, list(map(str, arguments)), input=stdin)
        assert result.exit_code == exit_code, result.output
        return result

    return run


@pytest.fixture
def make_events() -> type[Events]:
    return Events


@pytest.fixture
def abort_call() -> Callable[..., None]:
    return abort
