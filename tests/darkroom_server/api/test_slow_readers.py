"""Clients that do not read their streams: what waits for them is bounded, and keeps nobody else waiting."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from darkroom.v1.catalog_service_pb2 import UnloadModelRequest
from darkroom_server.jobs import registry
from tests import noise_family
from tests.noise_family import save_noise
from tests.support import RunningServer, Stream, generate_request, refused, settle

PICTURES = {"model": "noise", "width": 1024, "height": 1024, "num_images": 8, "num_inference_steps": 1}  # 3 MiB each


@pytest.fixture
def model(tmp_path: Path) -> dict[str, Any]:
    return {"name": "noise", "path": save_noise(tmp_path / "noise"), "max_edge": 1024, "max_pixels": 1024 * 1024}


@pytest.fixture
def unread(model: dict[str, Any]) -> Iterator[tuple[RunningServer, Stream]]:
    """A server, and a stream whose job is done and of which most is not read."""
    with RunningServer(models=[model], plugins={"noise": noise_family}) as server:
        stream = server.start(generate_request(**PICTURES))
        stream.read_until("image")
        server.run(engine_is_idle(server))
        yield server, stream


async def engine_is_idle(server: RunningServer) -> None:
    while not server.app.engine.idle:
        await server.app.engine.call(lambda: None)


def test_its_model_can_be_unloaded_before_it_reads(unread: tuple[RunningServer, Stream]) -> None:
    server, stream = unread
    assert server.app.jobs.active_jobs == 1
    server.catalog.UnloadModel(UnloadModelRequest(model="noise"), timeout=30)
    assert len(stream.read().pictures()) == 8
    settle(server)


def test_a_client_that_reads_nothing_loses_its_job(model: dict[str, Any]) -> None:
    with RunningServer(models=[model], plugins={"noise": noise_family}, slow_reader_seconds=0.5) as server:
        stream = server.start(generate_request(**PICTURES))
        stream.read_until("image")
        settle(server)  # without reading on
        failed = refused(stream.read)
        assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SLOW_READER")
        assert "0.5 seconds" in failed.message


def test_one_that_leaves_before_it_hears_of_that_is_no_fault(
    model: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with RunningServer(models=[model], plugins={"noise": noise_family}, slow_reader_seconds=0.5) as server:
        stream = server.start(generate_request(**PICTURES))
        stream.read_until("image")
        settle(server)
        stream.call.cancel()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_what_waits_to_be_read_is_bounded(model: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The job that has most loses; others go on."""
    monkeypatch.setattr(registry, "BLOCKED_SECONDS", 0.0)
    with RunningServer(models=[model], plugins={"noise": noise_family}, max_unread_bytes=60 * 2**20) as server:
        slow = server.start(generate_request(**{**PICTURES, "num_images": 16}))
        slow.read_until("image")
        server.run(engine_is_idle(server))
        others = server.together([generate_request(**PICTURES)] * 2)
        while server.app.jobs.active_jobs > 2:  # until the slow one is ended, with all of the others' unread, too
            time.sleep(0.01)
        for other in others:
            assert len(other.read().pictures()) == 8
        failed = refused(slow.read)
        assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SLOW_READER")
        settle(server)
