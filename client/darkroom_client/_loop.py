"""The background event loop that all blocking clients of a process share.

One loop, as gRPC's asyncio API has one poller per process, which wakes every loop for every event.
"""

import asyncio
import atexit
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc
import grpc.aio

from darkroom_client._fork import refuse_after_fork
from darkroom_client.errors import DarkroomError

_T = TypeVar("_T")
_aio: Any = grpc.aio  # Any: its type stubs are incomplete
_lock = threading.Lock()
_shared: "BackgroundLoop | None" = None


class BackgroundLoop:
    """An event loop in a daemon thread, stopped when the interpreter exits."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_ignore_lost_wakeups)
        self._thread = threading.Thread(target=self._run, name="darkroom-client", daemon=True)
        self._thread.start()
        atexit.register(self._stop)

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Runs a coroutine in the loop and waits for its result. An interrupt (Ctrl-C) cancels it.

        :raises DarkroomError: in a forked child, which lacks the loop's thread.
        """
        try:
            refuse_after_fork()
        except DarkroomError:
            coroutine.close()
            raise
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def call_soon(self, function: Any) -> None:
        """Schedules `function` in the loop and returns at once."""
        self._loop.call_soon_threadsafe(function)

    def _run(self) -> None:
        # Never shut down: with the last channel, gRPC would stop its poller, which other loops still use.
        self._loop.call_soon(_aio.init_grpc_aio)
        self._loop.run_forever()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=1)


def shared_loop() -> BackgroundLoop:
    """The process's background loop, started by the first call."""
    global _shared
    with _lock:
        _shared = _shared or BackgroundLoop()
        return _shared


def _ignore_lost_wakeups(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # grpcio 1.75 (no longer 1.85) raises BlockingIOError in a loop whose wake-up another loop has consumed: harmless.
    if not isinstance(context.get("exception"), BlockingIOError):
        loop.default_exception_handler(context)
