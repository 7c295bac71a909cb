"""Whatever is logged, a record is one line, and nothing in it looks like another."""

import hashlib
import io
import json
import logging
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from darkroom.v1 import parameters_pb2
from darkroom.v1.image_service_pb2 import CancelRequest, PreprocessRequest
from darkroom_plugins.quoting import printable, quoted
from darkroom_server import app
from darkroom_server.jobs.log_store import Store
from darkroom_server.observe.log import FORMAT, MAX_LINE, MAX_TRACEBACK, OneLine, json_lines
from tests.failing import Failing
from tests.support import RunningServer, Stream, generate_request, png, refused, settle

FORGED = "x\r\n2026-01-01 00:00:00,000 INFO darkroom_server.app: all is well\x1b[2K\u2028\u202e"


@pytest.fixture
def log() -> Iterator[tuple[logging.Logger, io.StringIO]]:
    stream, logger = io.StringIO(), logging.getLogger("one-line")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(OneLine(FORMAT))
    logger.addHandler(handler)
    logger.propagate = False
    yield logger, stream
    logger.removeHandler(handler)


def test_a_message_is_one_line_and_short(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log
    logger.warning("job %s ended", FORGED + "y" * 10**6)
    (line,) = stream.getvalue().splitlines()
    assert "\\r\\n2026" in line
    assert "\\x1b[2K\\u2028\\u202e" in line
    assert len(line) < 2 * MAX_LINE


def test_a_traceback_is_indented_and_short(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log
    try:
        raise ValueError(f"{FORGED}{'z' * 10**6}")
    except ValueError:
        logger.exception("it failed")
    first, *others = stream.getvalue().splitlines()
    assert first.endswith("ERROR one-line: it failed")
    assert all(line.startswith("    ") for line in others)
    assert any(line.strip().startswith("2026-01-01") for line in others)
    assert len(stream.getvalue()) < 3 * MAX_LINE


def test_of_an_endless_traceback_the_end_is_kept(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log
    try:
        raise ValueError("\n" * 10**5 + "the end")
    except ValueError:
        logger.error("it failed", exc_info=sys.exc_info())
    lines = stream.getvalue().splitlines()
    assert len(lines) == MAX_TRACEBACK + 1
    assert lines[-1].endswith("the end")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "'plain'"),
        ("", "''"),
        ("it's", '"it\'s"'),
        ("a\nb\x00", r"'a\nb\x00'"),
        ("x" * 10**6, f"'{'x' * 127}…'"),
    ],
)
def test_a_strangers_text_is_quoted_and_cut(text: str, shown: str) -> None:
    assert quoted(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"), [("ä 🎨 \\", "ä 🎨 \\"), ("a\tb\ud800", "a\\tb\\ud800"), ("x" * 99, f"{'x' * 9}…")]
)
def test_other_texts_are_printable(text: str, shown: str) -> None:
    assert printable(text, 10) == shown


@pytest.fixture
def json_log() -> Iterator[tuple[logging.Logger, io.StringIO]]:
    """The server's log as JSON."""
    stream, logger = io.StringIO(), logging.getLogger("darkroom_server")
    handler, level = logging.StreamHandler(stream), logger.level
    handler.setFormatter(json_lines())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield logger, stream
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_a_json_record_is_one_line_whatever_is_in_it(json_log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = json_log
    try:
        raise ValueError(f"{FORGED}{'z' * 10**6}")
    except ValueError:
        logger.exception("job %s ended", FORGED, extra={"request_id": FORGED, "seconds": 1.5})
    (line,) = stream.getvalue().splitlines()
    record = json.loads(line)
    assert (record["level"], record["logger"], record["seconds"]) == ("error", "darkroom_server", 1.5)
    assert record["request_id"].isprintable()
    assert record["event"].isprintable()
    assert "zzz" in record["exception"]
    assert len(line) < 100_000


@pytest.mark.parametrize("prompts", [False, True])
def test_a_job_is_one_record(json_log: tuple[logging.Logger, io.StringIO], tiny_model: Path, prompts: bool) -> None:
    tokens = [{"name": "me", "sha256": hashlib.sha256(b"t0ken").hexdigest()}]
    models: list[Any] = [{"name": "tiny", "path": tiny_model}]
    request = generate_request(prompt="a s3cret", request_id="mine", num_inference_steps=2)
    with RunningServer(models=models, tokens=tokens, log_prompts=prompts) as server:
        Stream(server.images.Generate(request, metadata=[("authorization", "Bearer t0ken")], timeout=60)).read()
        settle(server)
    records = [json.loads(line) for line in json_log[1].getvalue().splitlines()]
    (job,) = [record for record in records if record.get("request_id") == "mine"]
    assert (job["token"], job["model"], job["outcome"], job["steps"]) == ("me", "tiny", "OK", 2)
    phases = {f"{phase}_seconds" for phase in ("queue", "load", "encode_prompt", "denoise", "decode")}
    assert phases <= job.keys()
    assert ("a s3cret" in json_log[1].getvalue()) is prompts
    assert "t0ken" not in json_log[1].getvalue()


def test_a_job_says_why_it_ended_and_never_its_prompt(
    json_log: tuple[logging.Logger, io.StringIO], tiny_model: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    models: list[Any] = [{"name": "tiny", "path": tiny_model}, {"name": "broken", "path": broken, "preload": False}]
    keep = parameters_pb2.DISCONNECT_POLICY_KEEP
    with RunningServer(plugins={"failing": Failing()}, models=models, limits={"max_batch_rows": 2}) as server:

        def begin(name: str, timeout: float = 60, **parameters: Any) -> Stream:
            given = {"prompt": "a s3cret", "request_id": name, "num_inference_steps": 400, **parameters}
            return server.start(generate_request(**given), timeout)

        stream = begin("left")
        stream.read_until("step")
        stream.call.cancel()
        stream = begin("cancelled")
        stream.read_until("step")
        server.images.Cancel(CancelRequest(request_id="cancelled"))
        refused(stream.read)
        settle(server)  # what waits no more does not count for the estimates
        with server.paused():
            late = begin("late", timeout=2, num_inference_steps=1)
            kept = begin("late-and-kept", timeout=2, num_inference_steps=1, disconnect_policy=keep)
            for stream in (late, kept):
                refused(stream.read)
            server.run(server.app.jobs.idle())  # the server knows a little later than its clients
        (weights,) = (broken / "unet").glob("*.safetensors")
        weights.write_bytes(weights.read_bytes()[:-1000])
        refused(begin("not-loaded", model="broken").read)
        words = {"prompt": "fail after_evaluation error", "negative_prompt": "a s3cret"}
        refused(begin("failed", **words, task="failing").read)
        words["prompt"] = "fail finish error"  # of the first picture, while the others are in the making
        refused(begin("not-finished", **words, task="failing", num_images=4).read)
        refused(begin("not-finished-and-kept", **words, task="failing", num_images=4, disconnect_policy=keep).read)
        refused(begin("refused", num_inference_steps=0, negative_prompt="a s3cret").read)
        picture = png(np.zeros((32, 32, 3), np.uint8))
        given = PreprocessRequest(preprocessor="canny", image=picture, request_id="map")
        list(server.images.Preprocess(given, timeout=60))
        settle(server)
    records = ended(json_log[1])
    outcomes = {record["request_id"]: record["outcome"] for record in records}
    assert len(records) == len(outcomes)
    assert outcomes == {
        "left": "CLIENT",
        "cancelled": "CANCELLED",
        "late": "DEADLINE",
        "late-and-kept": "DEADLINE",
        "not-loaded": "LOAD_FAILED",
        "failed": "PLUGIN_FAILED",
        "not-finished": "PLUGIN_FAILED",
        "not-finished-and-kept": "PLUGIN_FAILED",
        "map": "OK",
    }
    assert "s3cret" not in json_log[1].getvalue()


def test_a_job_that_the_log_does_not_take_says_so(
    json_log: tuple[logging.Logger, io.StringIO], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> int:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Store, "add", full)
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], state_dir=tmp_path / "state") as server:
        keep = parameters_pb2.DISCONNECT_POLICY_KEEP
        failed = refused(lambda: server.generate(prompt="x", num_inference_steps=400, disconnect_policy=keep))
        settle(server)
    assert outcomes_of(json_log[1]) == [failed.reason]


def test_a_job_says_whose_it_was(json_log: tuple[logging.Logger, io.StringIO], tiny_model: Path) -> None:
    token = {"name": "me", "sha256": hashlib.sha256(b"t0ken").hexdigest()}
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], tokens=[token]) as server:
        mine = {"metadata": [("authorization", "Bearer t0ken")], "timeout": 60}
        Stream(server.images.Generate(generate_request(prompt="x", num_inference_steps=1), **mine)).read()
        given = PreprocessRequest(preprocessor="canny", image=png(np.zeros((32, 32, 3), np.uint8)))
        Stream(server.images.Preprocess(given, **mine)).read()
        settle(server)
    assert [record["token"] for record in ended(json_log[1])] == ["me", "me"]


def test_a_warm_up_is_no_client_that_left(
    json_log: tuple[logging.Logger, io.StringIO], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "wants_warm_up", lambda model: True)
    model = {"name": "tiny", "path": tiny_model, "default_num_inference_steps": 400}
    with RunningServer(models=[model]) as server:
        settle(server)
    assert set(outcomes_of(json_log[1])) == {"CANCELLED"}


def ended(log: io.StringIO) -> list[dict[str, Any]]:
    """The records of the jobs that have ended."""
    return [record for record in map(json.loads, log.getvalue().splitlines()) if "outcome" in record]


def outcomes_of(log: io.StringIO) -> list[str]:
    return [record["outcome"] for record in ended(log)]
