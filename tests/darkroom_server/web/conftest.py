"""A server with HTTP's door, shared by these tests, and one that wants tokens."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.darkroom_server.web.http import ORIGIN, TOKEN
from tests.support import RunningServer, settle


@pytest.fixture(scope="package")
def open_server(tiny_model: Path) -> Iterator[RunningServer]:
    presets = {"fast": {"num_inference_steps": 6, "scheduler": "euler"}}
    models = [{"name": "tiny", "path": tiny_model, "default_num_inference_steps": 8, "presets": presets}]
    limits = {"max_request_bytes": 256 * 1024}
    with RunningServer(models=models, http="127.0.0.1:0", cors_origins=[ORIGIN], limits=limits) as running:
        yield running


@pytest.fixture
def web(open_server: RunningServer) -> Iterator[RunningServer]:
    """The shared server; after the test nothing is left."""
    yield open_server
    settle(open_server)


@pytest.fixture(scope="package")
def locked(tiny_model: Path) -> Iterator[RunningServer]:
    models = [{"name": "tiny", "path": tiny_model}]
    with RunningServer(models=models, http="127.0.0.1:0", tokens=[TOKEN]) as running:
        yield running


@pytest.fixture
def http(web: RunningServer) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=web.app.url, timeout=30) as client:
        yield client
