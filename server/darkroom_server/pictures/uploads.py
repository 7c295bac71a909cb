"""Decoding of clients' pictures in worker processes: a decoder is where strangers get in.

A file that crashes its reader, takes too much memory or too long costs its own request an error, and the worker, which
is replaced; other uploads go on.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import subprocess
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from darkroom_server.pictures.decode import BadImage, Limits
from darkroom_server.pictures.worker import KINDS, PIXELS, READY, REFUSED, REPLY, TASK, Reply, Task

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

Kind: TypeAlias = Literal["image", "control_map", "mask", "transparency"]

PLANES = ("mask", "transparency")  # kinds of one channel
START_SECONDS = 60.0  # some 0.3 s, of a processor that is free
KEPT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")  # of the environment, which may hold secrets
ALONE = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
PIPE_BYTES = 1024 * 1024  # a pipe's buffer: fewer switches from process to process
MAX_WORDS = 300  # bytes of a refusal
MIB = 1024 * 1024


class Uploads:
    """Decodes pictures in up to `workers` processes. Any thread may call it; a call waits for a worker."""

    def __init__(self, limits: Limits, workers: int, memory: int, seconds: float) -> None:
        """`memory`: bytes that one picture may take, beside what an idle worker has; `seconds`: as long it may take."""
        self._limits, self._memory, self._seconds = limits, memory, seconds
        self._free: queue.LifoQueue[_Worker | None] = queue.LifoQueue()  # the last used first; None: not started
        self._known: set[_Worker] = set()
        self._lock = threading.Lock()
        self._closed = False
        weakref.finalize(self, _end_all, self._known)  # of a catalog that nobody closed
        for _ in range(workers):
            self._free.put(None)

    @property
    def processes(self) -> list[int]:
        """The workers' process ids."""
        with self._lock:
            return [worker.pid for worker in self._known]

    def start(self) -> None:
        """Start all workers, without waiting until they are ready: else the first uploads do."""
        for worker in [self._free.get() for _ in range(self._free.qsize())]:
            self._free.put(worker if worker is not None else self._new())

    def close(self) -> None:
        """End the workers, whatever they do."""
        with self._lock:
            self._closed = True
            _end_all(self._known)

    def decode(self, kind: Kind, data: bytes) -> npt.NDArray[np.uint8]:
        """The pixels of a file, read-only; see `decode.decode_image` and the others of these kinds.

        :raises BadImage: not an image, damaged, or too large; or its decoding failed or took too much
        """
        worker = self._free.get()
        try:
            for _ in range(2):  # whatever ended the first worker may have had other reasons
                if worker is None or not worker.alive:
                    worker = self._replace(worker)
                try:
                    return worker.decode(kind, data, self._limits, self._seconds)
                except _Ended as error:
                    log.warning("a worker that decodes uploads ended (%s) and is replaced", error)
                except TimeoutError:
                    log.warning("a picture took more than %g s to decode: its worker is replaced", self._seconds)
                    worker = self._replace(worker)
                    raise BadImage(f"takes longer than {self._seconds:g} s to decode") from None
                except MemoryError:
                    raise BadImage(f"takes more than {self._memory // MIB} MiB of memory to decode") from None
            raise BadImage("cannot be decoded: its decoder crashes")
        finally:
            self._free.put(worker)

    def _replace(self, worker: _Worker | None) -> _Worker:
        if worker is not None:
            with self._lock:
                self._known.discard(worker)
            worker.end()
        return self._new()

    def _new(self) -> _Worker:
        """:raises BadImage: no more pictures are decoded"""
        with self._lock:
            if self._closed:
                raise BadImage("cannot be decoded: the server is shutting down")
            worker = _Worker(self._memory)
            self._known.add(worker)
        return worker


def _end_all(workers: set[_Worker]) -> None:
    while workers:
        workers.pop().end()


class _Ended(Exception):
    """The worker process is gone, or answers nonsense."""


class _Worker:
    """One process, for one caller at a time."""

    def __init__(self, memory: int) -> None:
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "darkroom_server.pictures.worker", str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**kept, **ALONE, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,  # the terminal's Ctrl-C is for the server
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._tasks, self._replies = self._process.stdin.fileno(), self._process.stdout.fileno()
        for descriptor in (self._tasks, self._replies):
            os.set_blocking(descriptor, False)
            _enlarge(descriptor)
        self._ready = False

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def decode(self, kind: Kind, data: bytes, limits: Limits, seconds: float) -> npt.NDArray[np.uint8]:
        """:raises BadImage: the worker refuses it
        :raises MemoryError: it takes more than the worker has
        :raises TimeoutError: it took too long
        :raises _Ended: the worker is gone
        """
        if not self._ready:
            self._receive(len(READY), time.monotonic() + START_SECONDS)
            self._ready = True
        until = time.monotonic() + seconds
        task = Task(KINDS.index(kind), limits.max_edge, limits.max_pixels, seconds, len(data))
        self._send(TASK.pack(*task), until)
        self._send(data, until)
        reply = Reply(*REPLY.unpack(self._receive(REPLY.size, until)))
        if reply.outcome == REFUSED and reply.size <= MAX_WORDS:
            raise BadImage(self._receive(reply.size, until).decode("ascii", "replace"))
        if reply.outcome != PIXELS:
            raise MemoryError
        shape = (reply.height, reply.width, reply.channels)[: 2 if kind in PLANES else 3]
        if reply.height * reply.width > limits.max_pixels or reply.size != np.prod(shape, dtype=np.int64):
            self._process.kill()  # else what it answers next would be taken for another picture
            self._process.wait()
            raise _Ended("it answers what it was not asked")
        pixels = np.frombuffer(self._receive(reply.size, until), np.uint8).reshape(shape)
        pixels.flags.writeable = False
        return pixels

    def end(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _send(self, data: bytes, until: float) -> None:
        rest = memoryview(data)
        for _ in _turns(self._tasks, select.POLLOUT, until):
            try:
                rest = rest[os.write(self._tasks, rest[:PIPE_BYTES]) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._gone() from error
            if not rest:
                return

    def _receive(self, size: int, until: float) -> bytearray:
        made = bytearray(size)
        rest = memoryview(made)
        for _ in _turns(self._replies, select.POLLIN, until):
            try:
                count = os.readv(self._replies, [rest])
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._gone() from error
            if not count:
                raise self._gone()
            rest = rest[count:]
            if not rest:
                break
        return made

    def _gone(self) -> _Ended:
        self._process.kill()
        return _Ended(f"status {self._process.wait()}")


def _turns(descriptor: int, event: int, until: float) -> Iterator[None]:
    """Yields whenever the descriptor can be read or written. :raises TimeoutError: not by then (time.monotonic)"""
    poll = select.poll()
    poll.register(descriptor, event)
    while True:
        if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
            raise TimeoutError
        yield


def _enlarge(descriptor: int) -> None:
    """Linux only, and up to the user's limit."""
    try:
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except (AttributeError, OSError):
        pass
