"""Signals: what they ask of a server, and the end of its process, whatever its threads do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

from darkroom_server.observe.streams import SETTLE_SECONDS, QueuedStream, settle

log = logging.getLogger(__name__)

GRACE_SECONDS = 5.0  # after the drain
EXIT_HANGING, EXIT_INTERRUPTED = 70, 130  # sysexits' EX_SOFTWARE; 128 + SIGINT

T = TypeVar("T")


class Shutdown:
    """What signals ask for. The first SIGINT, SIGTERM or SIGHUP: drain; the second: end the drain; the third: exit at
    once. If the process is `owned`, it ends `GRACE_SECONDS` after the drain, whatever its threads do; with status 0
    before it is `serving`: models that are being opened or loaded are not worth waiting for.

    A context manager: the signals' handlers are those of before when it ends; but an owned process that ends keeps
    these, for signals that come until it has."""

    def __init__(self, drain_seconds: float, owned: bool) -> None:
        self.asked, self.hurried = asyncio.Event(), asyncio.Event()
        self.serving = False
        self._drain_seconds, self._owned = drain_seconds, owned
        self._loop = asyncio.get_running_loop()
        handlers = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        self._before = {name: old for name, old in handlers.items() if old is not signal.SIG_IGN}  # as SIGHUP by nohup

    def __enter__(self) -> Self:
        for name in self._before:
            self._loop.add_signal_handler(name, self._on_signal, name)
        return self

    def __exit__(self, *_: object) -> None:
        for name, old in self._before.items():
            self._loop.remove_signal_handler(name)  # a closed uvloop would leave its own (0.23)
            ending = self._owned and self.asked.is_set()
            signal.signal(name, (lambda number, _: self._on_signal(signal.Signals(number))) if ending else old)

    def _on_signal(self, name: signal.Signals) -> None:
        if self.hurried.is_set():
            log.warning("%s for the third time: exiting at once", name.name)
            settle(SETTLE_SECONDS)
            os._exit(EXIT_INTERRUPTED)
        if self.asked.is_set():
            if name is not signal.SIGHUP:
                self.hurried.set()  # first: the next signal may interrupt what follows
                log.warning("%s again: jobs that still run are ended", name.name)
                self.bound(0)
            return
        self.asked.set()
        if self.serving:
            log.info("%s: running jobs have %g s to end", name.name, self._drain_seconds)
            self.bound(self._drain_seconds)
        else:
            log.info("%s before the server is ready", name.name)
            self.bound(0, status=0)

    def bound(self, seconds: float, status: int = EXIT_HANGING) -> None:
        """End an owned process after these seconds and the grace: a thread may hang, also one that its exit joins."""
        if not self._owned:
            return
        timer = threading.Timer(seconds + GRACE_SECONDS, _leave_hanging, [status])
        timer.daemon = True
        timer.start()


def _leave_hanging(status: int) -> None:
    message = f"the server does not stop by itself: exiting with status {status}"
    log.critical(message)
    settle(SETTLE_SECONDS)
    if not isinstance(sys.stderr, QueuedStream):  # the log's stream has been closed
        with contextlib.suppress(OSError):
            os.write(2, f"{message}\n".encode())
    os._exit(status)


async def until(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`; None if `stop` is set first, which cancels it."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if working.done():
        return await working
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    return None
