"""Whatever is logged, a record is one line, and nothing in it looks like another."""

import hashlib
import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from darkroom_plugins.quoting import printable, quoted
from darkroom_server.observe.log import FORMAT, MAX_LINE, MAX_TRACEBACK, OneLine, json_lines
from tests.support import RunningServer, Stream, generate_request, settle

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
