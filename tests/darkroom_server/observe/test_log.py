"""Whatever is logged, a record is one line, and nothing in it looks like another."""

import io
import logging
import sys
from collections.abc import Iterator

import pytest

from darkroom_plugins.quoting import printable, quoted
from darkroom_server.observe.log import FORMAT, MAX_LINE, MAX_TRACEBACK, OneLine

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
