"""Standard output and error that never block, fail or end the server.

Nobody may read them: a pipe is full after 64 KiB, a terminal is held by Ctrl-S, a disk is full, a reader has left. So
what Python writes is queued, and a daemon thread writes it to the file; what does not fit into the queue is dropped and
counted. A thread that is blocked for good does not keep the process from ending. Libraries that write to the file
descriptors themselves, as gRPC's core does, get an error where they would block.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, TextIO

MAX_QUEUED = 1024 * 1024  # characters
SETTLE_SECONDS = 1.0  # for what is still queued when the process ends


class QueuedStream(io.TextIOBase):
    """A text stream in place of one that may block or fail; a thread writes to the file descriptor of that."""

    def __init__(self, descriptor: int, encoding: str, terminal: bool) -> None:
        """`descriptor` is written to by the thread alone."""
        self._descriptor, self._encoding, self._terminal = descriptor, encoding, terminal
        self._queue: deque[str] = deque()
        self._queued = 0  # characters, with those that the thread is writing
        self._lost = 0  # lines since the last that went through
        self._left = False  # nothing more comes
        self._change = threading.Condition()
        threading.Thread(target=self._run, name="writer", daemon=True).start()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        """Queue it; or drop it, where too much is queued."""
        if not isinstance(text, str):
            raise TypeError(f"text is needed, not {type(text).__name__}")
        with self._change:
            if self._queued and self._queued + len(text) > MAX_QUEUED:
                self._lost += text.count("\n")
            else:
                self._put(text)
        return len(text)

    def settle(self, until: float) -> None:
        """Wait until all is written, up to this time (time.monotonic)."""
        with self._change:
            self._change.wait_for(lambda: not self._queued, max(0.0, until - time.monotonic()))

    def leave(self) -> None:
        """End the thread, once it has written what is queued."""
        with self._change:
            self._left = True
            self._change.notify_all()

    def _put(self, text: str) -> None:
        self._queue.append(text)
        self._queued += len(text)
        self._change.notify_all()

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._queue or self._left)
                if not self._queue:
                    break
                text = self._queue.popleft()
            written = _write(self._descriptor, text.encode(self._encoding, "backslashreplace"))
            with self._change:
                self._queued -= len(text)
                if not written:
                    self._lost += text.count("\n")
                elif self._lost and not self._queue:
                    self._put(f"({self._lost} lines before this are lost: nobody took them)\n")
                    self._lost = 0
                self._change.notify_all()
        os.close(self._descriptor)


def _write(descriptor: int, data: bytes) -> bool:
    """Write all, for as long as it takes. Returns False if the reader has left, or the disk is full."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # set so by who shares the file
            select.select([], [descriptor], [])
        except OSError:
            return False
    return True


@contextlib.contextmanager
def queued_streams() -> Iterator[None]:
    """Standard output and error as QueuedStreams. Streams without a file, as a notebook's, stay."""
    open_missing()
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as undo:
        sys.stdout, sys.stderr = (_queued(stream, number, undo) for number, stream in enumerate(before, 1))
        try:
            yield
        finally:
            settle(SETTLE_SECONDS)
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, QueuedStream):
                    stream.leave()
            sys.stdout, sys.stderr = before


def settle(seconds: float) -> None:
    """Wait until what was written to standard output and error is in their files; up to so many seconds."""
    until = time.monotonic() + seconds
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, QueuedStream):
            stream.settle(until)


def open_missing() -> None:
    """Open /dev/null for each of standard input, output and error that the process was started without: else the next
    file or socket would get its number, and with it what libraries write to standard error."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)


def _queued(stream: TextIO | None, number: int, undo: contextlib.ExitStack) -> Any:
    """The stream, queued; the file descriptor `number`, if it is the stream's, does not block until `undo` closes."""
    try:
        descriptor = number if stream is None else stream.fileno()
    except (OSError, ValueError):  # in memory, or closed
        return stream
    own = os.dup(descriptor)
    _stop_blocking(descriptor, undo)
    return QueuedStream(own, getattr(stream, "encoding", None) or "utf-8", bool(stream and stream.isatty()))


def _stop_blocking(descriptor: int, undo: contextlib.ExitStack) -> None:
    """Put another in place of a descriptor of a pipe or terminal, which does not block: to change the descriptor itself
    would change it for all processes that share it. Others stay: files do not block, sockets cannot be opened anew."""
    if not (stat.S_ISFIFO(os.fstat(descriptor).st_mode) or os.isatty(descriptor)):
        return
    try:
        opened = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return
    before = os.dup(descriptor)
    undo.callback(os.close, before)
    undo.callback(os.dup2, before, descriptor)
    os.dup2(opened, descriptor)
    os.close(opened)
