"""Nobody reads standard output or error, or nobody can: what is written is queued or dropped, and never waited for."""

import contextlib
import os
import pty
import subprocess
import sys
import termios
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from darkroom_server.observe.streams import MAX_QUEUED, QueuedStream


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(descriptor)


def queued(descriptor: int) -> QueuedStream:
    return QueuedStream(os.dup(descriptor), "utf-8", terminal=False)


def settled(stream: QueuedStream) -> None:
    stream.settle(time.monotonic() + 60)


def test_what_is_read_comes_whole_and_in_order(pipe: tuple[int, int]) -> None:
    stream = queued(pipe[1])
    lines = [f"{number} ü \ud800\n" for number in range(20_000)]
    got: list[bytes] = []
    reading = threading.Thread(target=lambda: got.extend(iter(lambda: os.read(pipe[0], 65_536), b"")))
    reading.start()
    for number, line in enumerate(lines):
        stream.write(line)
        if number % 1000 == 0:
            settled(stream)
    settled(stream)
    stream.leave()
    os.close(pipe[1])
    reading.join()
    assert b"".join(got).decode() == "".join(lines).replace("\ud800", "\\ud800")


def test_what_nobody_reads_is_dropped_and_counted(pipe: tuple[int, int]) -> None:
    stream = queued(pipe[1])
    line, count = "x" * 999 + "\n", 3 * MAX_QUEUED // 1000
    for _ in range(count):
        stream.write(line)
    text = ""
    while "lost" not in text:
        text += os.read(pipe[0], 65_536).decode()
    *whole, notice = text.splitlines()
    assert notice == f"({count - len(whole)} lines before this are lost: nobody took them)"
    assert set(whole) == {line.rstrip()}
    assert MAX_QUEUED // 1000 <= len(whole) < count
    stream.write("again\n")
    assert os.read(pipe[0], 65_536) == b"again\n"
    stream.leave()


def test_one_text_may_be_longer_than_the_queue(pipe: tuple[int, int]) -> None:
    stream = queued(pipe[1])
    stream.write("y" * (MAX_QUEUED + 1))
    got = 0
    while got <= MAX_QUEUED:
        got += len(os.read(pipe[0], 65_536))
    assert got == MAX_QUEUED + 1
    stream.leave()


def test_a_reader_that_has_left_and_a_full_disk_are_no_errors(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    with open("/dev/full", "w") as full:
        for descriptor in (pipe[1], full.fileno()):
            stream = queued(descriptor)
            print("nobody", file=stream, flush=True)
            settled(stream)
            print("nobody", file=stream, flush=True)
            settled(stream)
            stream.leave()


def test_bytes_are_refused(pipe: tuple[int, int]) -> None:
    """As by any text stream: libraries try this, to tell one from another."""
    stream = queued(pipe[1])
    with pytest.raises(TypeError, match="text is needed, not bytes"):
        stream.write(b"")  # type: ignore[arg-type]
    stream.leave()


FLOOD = """
    import logging, os, sys, threading
    from darkroom_server.observe.streams import queued_streams
    with queued_streams():
        logging.basicConfig(stream=sys.stderr, level=logging.INFO)
        for _ in range(5000):
            logging.info("x" * 1000)
        try:
            os.write(2, bytes(1024 * 1024))  # as libraries do that are no Python
            os.write(2, bytes(1024 * 1024))
        except OSError:
            pass
        threading.Thread(target=lambda: 1 / 0).start()  # its traceback is printed by Python
        print("warned", file=sys.stderr, flush=True)
        os.write(int(sys.argv[1]), b"through\\n")
"""


@contextlib.contextmanager
def sink(kind: str) -> Iterator[int]:
    """A descriptor that takes nothing, or not for long."""
    reader, writer = pty.openpty() if kind == "terminal" else os.pipe()
    if kind == "terminal":
        termios.tcflow(writer, termios.TCOOFF)  # as by Ctrl-S
    if kind == "left":
        os.close(reader)
    yield writer
    os.close(writer)
    if kind != "left":
        os.close(reader)


@pytest.mark.parametrize("kind", ["unread", "left", "terminal"])
def test_a_process_ends_though_nobody_reads(kind: str) -> None:
    told, tell = os.pipe()
    command = [sys.executable, "-c", textwrap.dedent(FLOOD), str(tell)]
    with sink(kind) as writer, subprocess.Popen(command, stdout=writer, stderr=writer, pass_fds=[tell]) as process:
        os.close(tell)
        assert os.read(told, 100) == b"through\n"
        assert process.wait(60) == 0
    os.close(told)


def test_missing_streams_are_opened_before_anything_else_takes_their_numbers(tmp_path: Path) -> None:
    code = f"""
        import os, sys
        from darkroom_server.observe.streams import queued_streams
        with queued_streams():
            print("nobody"); print("nobody", file=sys.stderr)
            result = open({str(tmp_path / "result")!r}, "w")
            print(result.fileno() > 2, [os.readlink(f"/proc/self/fd/{{n}}") for n in range(3)], file=result)
    """
    shell = 'exec "$0" -c "$1" 0<&- 1>&- 2>&-'
    subprocess.run(["sh", "-c", shell, sys.executable, textwrap.dedent(code)], check=True, timeout=60)
    assert (tmp_path / "result").read_text() == f"True {['/dev/null'] * 3}\n"


def test_the_streams_are_as_before_afterwards() -> None:
    code = """
        import fcntl, os, sys
        from darkroom_server.observe.streams import queued_streams
        before = sys.stdout, sys.stderr
        with queued_streams():
            print("in", flush=True)
            print(bool(fcntl.fcntl(1, fcntl.F_GETFL) & os.O_NONBLOCK), sys.stdout.encoding)
        assert (sys.stdout, sys.stderr) == before
        print("out", bool(fcntl.fcntl(1, fcntl.F_GETFL) & os.O_NONBLOCK))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout == "in\nTrue utf-8\nout False\n"
    assert result.stderr == ""
