"""Strangers' texts in the log: none forges a line, none is long, and refused requests are known by their status."""

import logging
import struct as binary

import pytest
from grpc import StatusCode

from darkroom.v1 import catalog_service_pb2 as catalog_pb
from darkroom.v1 import image_service_pb2 as image_pb
from darkroom.v1 import parameters_pb2 as pb
from darkroom_server.observe.log import FORMAT, OneLine
from tests.support import RunningServer, edit_request, generate_request, refused, settle

FORGED = "x\n2026-01-01 00:00:00,000 INFO darkroom_server.engine.engine: job 1 ended after 0.1 s: done"
LONG = "y" * (30 * 1024 * 1024)


def lines(server: RunningServer, caplog: pytest.LogCaptureFixture) -> list[str]:
    settle(server)
    return [OneLine(FORMAT).format(record) for record in caplog.records]


@pytest.mark.parametrize("text", [FORGED, LONG], ids=["forged", "30 MiB"])
@pytest.mark.parametrize("field", ["request_id", "model", "scheduler", "task", "lora", "extension", "cancel", "load"])
def test_a_refused_text(server: RunningServer, caplog: pytest.LogCaptureFixture, field: str, text: str) -> None:
    caplog.set_level(logging.INFO)
    calls = {
        "request_id": lambda: server.generate(request_id=text),
        "model": lambda: server.generate(model=text),
        "scheduler": lambda: server.generate(scheduler=text),
        "task": lambda: server.generate(task=text),
        "lora": lambda: server.generate(loras=[pb.LoraSpec(name=text)]),
        "extension": lambda: server.generate(extensions={text: {}}),
        "cancel": lambda: server.images.Cancel(image_pb.CancelRequest(request_id=text)),
        "load": lambda: list(server.catalog.LoadModel(catalog_pb.LoadModelRequest(model=text))),
    }
    failed = refused(calls[field])
    assert failed.code in (StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND)
    assert len(failed.message) < 1000
    assert all(len(text) < 600 for text in (*failed.violations, *failed.violations.values()))
    (line,) = lines(server, caplog)
    assert "\n" not in line
    assert len(line) < 1500
    assert f": {failed.code.name}: " in line
    assert "cancelled" not in line


def test_a_job_that_was_submitted_is_logged_by_its_end(server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server.start(generate_request(request_id="good", num_inference_steps=1)).read()
    (line,) = [each for each in lines(server, caplog) if "job good" in each]
    assert line.endswith(": done")


def test_pillow_says_nothing_of_a_strangers_file(server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    """Of a TIFF with more samples than Pillow can decode it would."""
    caplog.set_level(logging.DEBUG)
    refused(lambda: server.start(edit_request(image=tiff_of_samples(60_000))).read())
    assert [record for record in caplog.records if record.name.startswith("PIL")] == []


def tiff_of_samples(count: int) -> bytes:
    """A TIFF of 8 x 8 pixels, each of so many samples."""
    tags = [(256, 8), (257, 8), (258, 8), (259, 1), (262, 2), (273, 8), (277, count), (278, 8), (279, 64)]
    entries = b"".join(binary.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    return b"II*\0" + binary.pack("<IH", 8, len(tags)) + entries + bytes(4 + 256)
