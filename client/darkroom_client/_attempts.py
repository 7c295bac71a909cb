"""Calls that are made again while the server cannot take them, within the caller's time-out."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from numbers import Real
from typing import Any, TypeVar

from darkroom_client._status import RPC_ERRORS, to_exception
from darkroom_client.errors import (
    Cancelled,
    DarkroomError,
    InvalidRequest,
    QueueFull,
    RequestIdInUse,
    ServerUnreachable,
    Unavailable,
    Violation,
)

log = logging.getLogger("darkroom_client")

_T = TypeVar("_T")
_LONGEST = 1e9  # seconds; gRPC's own limit overflows beyond some 3e11
_UNTIMED_RETRIES = 3  # of a call without a time-out
_FIRST_DELAY, _LONGEST_DELAY, _JITTER = 0.25, 1.0, 0.25  # seconds, where the server gives no delay; share of the delay


def time_limit(timeout: Any) -> float | None:
    """A `timeout` in seconds; None, infinity and more than 30 years are no limit.

    :raises InvalidRequest: for anything but a positive number or None.
    """
    if timeout is None:
        return None
    is_number = isinstance(timeout, Real) and not isinstance(timeout, bool)
    if not (is_number and timeout > 0):  # as is NaN
        problem = f"must be a number of seconds above 0, or None, not {timeout!r}"
        violation = Violation("timeout", problem)
        raise InvalidRequest(str(violation), reason="INVALID_REQUEST", violations=[violation])
    return None if timeout > _LONGEST else float(timeout)


class Attempts:
    """The attempts of one call.

    :param retries: how many may follow the first; None: as many as `timeout` allows, or 3 without one.
    :raises InvalidRequest: if `timeout` is not one.
    """

    def __init__(self, timeout: Any, retries: int | None) -> None:
        limit = time_limit(timeout)
        self._end = None if limit is None else time.monotonic() + limit
        self._left: float = retries if retries is not None else _UNTIMED_RETRIES if limit is None else float("inf")
        self._backoff = _FIRST_DELAY
        # Of an attempt that may have reached the server, which may not have noticed the end of it.
        self._lost: ServerUnreachable | None = None

    @property
    def remaining(self) -> float | None:
        """The seconds left; None without a limit."""
        return None if self._end is None else max(self._end - time.monotonic(), 0.0)

    def outcome(self, error: DarkroomError) -> DarkroomError:
        """What a call ends with whose last attempt failed so: the lost connection, if that attempt may hold the id."""
        return self._lost if self._lost is not None and isinstance(error, RequestIdInUse) else error

    def delay(self, error: DarkroomError) -> float | None:
        """Seconds until the next attempt after this error; None if there is none."""
        again = isinstance(error, QueueFull | Unavailable) or self.outcome(error) is not error
        if not again or self._left <= 0:
            return None
        self._left -= 1
        if isinstance(error, ServerUnreachable):
            self._lost = error
        seconds = (error.retry_after or self._backoff) * random.uniform(1, 1 + _JITTER)
        self._backoff = min(2 * self._backoff, _LONGEST_DELAY)
        if self._end is not None and time.monotonic() + seconds >= self._end:
            return None
        log.info("%s; trying again in %.1f s", error.message, seconds)
        return seconds


async def unary(call: Callable[[float | None], Awaitable[_T]], attempts: Attempts, address: str) -> _T:
    """The response of a unary call, which is made with the seconds left.

    :raises DarkroomError: the call's error.
    """
    while True:
        try:
            return await call(attempts.remaining)
        except asyncio.CancelledError:
            raise cancellation() from None
        except RPC_ERRORS as error:
            failure = to_exception(error, address, connected=False)
            delay = attempts.delay(failure)
            if delay is None:
                raise attempts.outcome(failure) from error
        await asyncio.sleep(delay)


class StreamCall:
    """A streaming call, begun at once, and until its first response begun again while the server cannot take it.

    :param begin: makes the gRPC call, with the seconds left.
    :param check: raises an error that keeps the call from being made; the call begins when it is through.
    """

    def __init__(
        self,
        begin: Callable[[float | None], Any],
        attempts: Attempts,
        address: str,
        check: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._begin: Callable[[float | None], Any] | None = begin
        self._attempts = attempts
        self._address = address
        self._answered = False
        self._cancelled = asyncio.Event()
        self._call: Any = None
        self._checking = asyncio.ensure_future(self._checked(check)) if check else None
        if self._checking is not None:
            self._checking.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may never be read
        else:
            self._start()

    async def read(self) -> Any:
        """The next response, or None at the end.

        :raises DarkroomError: the call's error; `Cancelled` if it was cancelled here.
        """
        try:
            return await self._read()
        except asyncio.CancelledError:
            raise cancellation() from None
        except RPC_ERRORS as error:  # from beginning again
            raise to_exception(error, self._address, connected=False) from error

    async def _read(self) -> Any:
        if self._checking is not None:
            await self._checking
        while True:
            try:
                response = await anext(self._messages, None)
            except RPC_ERRORS as error:
                await self._wait_after(error)
                self._start()
            else:
                self._answered, self._begin = True, None  # which holds the request
                return response

    def cancel(self) -> None:
        """Cancels the call; its reader gets `Cancelled`. Idempotent."""
        self._cancelled.set()
        if self._checking is not None:
            self._checking.cancel()
        if self._call is not None:
            self._call.cancel()

    async def _checked(self, check: Callable[[], Awaitable[None]]) -> None:
        await check()
        self._start()

    def _start(self) -> None:
        assert self._begin is not None
        self._call = self._begin(self._attempts.remaining)
        self._messages = aiter(self._call)

    async def _wait_after(self, error: Exception) -> None:
        """Waits until the next attempt.

        :raises DarkroomError: if there is none.
        """
        failure = to_exception(error, self._address, connected=self._answered)
        delay = None if self._answered else self._attempts.delay(failure)
        if delay is None:
            raise self._attempts.outcome(failure) from error
        with suppress(TimeoutError):
            await asyncio.wait_for(self._cancelled.wait(), delay)
        if self._cancelled.is_set():
            raise asyncio.CancelledError


def cancellation() -> BaseException:
    """What an asyncio.CancelledError is: the current task's own, or, if a client was closed, that of its call alone."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        return asyncio.CancelledError()
    return Cancelled("the call was cancelled: its client was closed")
