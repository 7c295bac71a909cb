"""Watchdog: sees work that takes too long, on the engine's thread and in plugins' hooks on any thread."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, NamedTuple

from darkroom_plugins import calls

if TYPE_CHECKING:
    from collections.abc import Callable

    from darkroom_server.config.settings import Settings
    from darkroom_server.engine.engine import Engine

log = logging.getLogger(__name__)

LOGGED_SECONDS = 10.0  # work that takes longer is logged, again each time that it has taken twice as long
CHECKS = 4  # in the shortest time that is watched for
FROZEN = 4  # a check that is late by more than so many pauses tells of a process that stood still


class Stall(NamedTuple):
    """Work that has not ended."""

    what: str
    seconds: float


class Watchdog:
    """For the event loop. `on_stall` is called with True when work has taken `stall_seconds`, with False when all goes
    on; `on_hang` when it has taken `stall_exit_seconds`."""

    def __init__(
        self, engine: Engine, settings: Settings, on_stall: Callable[[bool], None], on_hang: Callable[[], None]
    ) -> None:
        self._engine = engine
        self._stall_seconds, self._exit_seconds = settings.stall_seconds, settings.stall_exit_seconds
        self._on_stall, self._on_hang = on_stall, on_hang
        self._log_at = LOGGED_SECONDS
        self._stalled = False
        self._frozen = 0.0  # seconds of the present stall
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Check now and then until `stop`, or until the work hangs."""
        self._watching = asyncio.create_task(self._watch())

    def stop(self) -> None:
        """End the checks, if they were started."""
        if self._watching is not None:
            self._watching.cancel()

    async def _watch(self) -> None:
        pause = min(LOGGED_SECONDS, self._stall_seconds, self._exit_seconds or LOGGED_SECONDS) / CHECKS
        last = time.monotonic()
        while not self.check(time.monotonic(), frozen=max(0.0, time.monotonic() - last - FROZEN * pause)):
            last = time.monotonic()
            await asyncio.sleep(pause)

    def check(self, now: float, frozen: float = 0.0) -> bool:
        """Look once, at this time.monotonic, `frozen` seconds later than planned: the whole process stood still, and
        its work, too. Returns whether the process has to end."""
        what, seconds = self._longest(now)
        self._frozen = self._frozen + frozen if seconds >= LOGGED_SECONDS else 0.0
        stall = Stall(what, seconds - self._frozen)
        if stall.seconds < LOGGED_SECONDS:
            self._log_at = LOGGED_SECONDS
        if stall.seconds >= self._log_at:
            self._log_at = 2 * stall.seconds
            log.warning("%s has taken %.0f s so far", *stall)
        stalled = stall.seconds >= self._stall_seconds
        if stalled is not self._stalled:
            self._stalled = stalled
            log.error("%s: the server %s", stall.what, "is not serving" if stalled else "serves again")
            self._on_stall(stalled)
        if self._exit_seconds is None or stall.seconds < self._exit_seconds:
            return False
        log.critical("%s has taken %.0f s: the server ends, to be started again", *stall)
        self._on_hang()
        return True

    def _longest(self, now: float) -> Stall:
        """What has taken longest: the engine, since it last attended to its jobs, or a plugin's hook on another
        thread."""
        engine = self._engine.thread
        hooks = [call for call in calls.running() if call.thread != engine]
        stalls = [Stall(f"the plugin {call.plugin!r} in {call.hook}", now - call.began) for call in hooks]
        stalls.append(Stall(self._engine_work(), self._engine.stalled_for(now)))
        return max(stalls, key=lambda stall: stall.seconds)

    def _engine_work(self) -> str:
        """What the engine does, as far as it is known."""
        own = [call for call in calls.running() if call.thread == self._engine.thread]
        hook = max(own, key=lambda call: call.began, default=None)
        work = [str(self._engine.working)] if self._engine.working else []
        return ", ".join([*work, *([f"the plugin {hook.plugin!r} in {hook.hook}"] if hook else [])]) or "the engine"
