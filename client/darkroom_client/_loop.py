"""The event loop, in a thread of its own, that all sync clients of a process share.

One for all: gRPC's asyncio side keeps one poller per process and wakes every loop for every event.
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
_aio: Any = grpc.aio  # typed as Any: the stubs do not know all of it
_lock = threading.Lock()
_shared: "BackgroundLoop | None" = None


class BackgroundLoop:
    """An event loop that runs in a daemon thread until the interpreter exits."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_ignore_lost_wakeups)
        self._thread = threading.Thread(target=self._run, name="darkroom-client", daemon=True)
        self._thread.start()
        atexit.register(self._stop)

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Runs `work` in the loop and waits for it; an interrupt of the waiting cancels the work.

        :raises DarkroomError: in a forked child, where the loop's thread is missing.
        """
        try:
            refuse_after_fork()
        except DarkroomError:
            work.close()
            raise
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def call_soon(self, function: Any) -> None:
        """Calls `function` in the loop, without waiting for it."""
        self._loop.call_soon_threadsafe(function)

    def _run(self) -> None:
        # Held for good: gRPC would stop its poller with the last channel while other loops still listen to it.
        self._loop.call_soon(_aio.init_grpc_aio)
        self._loop.run_forever()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=1)


def shared_loop() -> BackgroundLoop:
    """The process's background loop, started at the first call."""
    global _shared
    with _lock:
        _shared = _shared or BackgroundLoop()
        return _shared


def _ignore_lost_wakeups(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # With older grpcio (1.75, no longer 1.85), a loop that another one beats to a wake-up gets this error; it is none.
    if not isinstance(context.get("exception"), BlockingIOError):
        loop.default_exception_handler(context)
