"""What leaves the engine's thread for the event loop: events of jobs, and models that are no longer in use."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from darkroom_server.engine.queue_positions import QueuePositions
from darkroom_server.jobs.events import Ended, Event
from darkroom_server.jobs.job import Job


class Outbox:
    """Collects events on the engine's thread, and hands them to the event loop in one call: a wake-up costs more than
    an event."""

    def __init__(self, loop: asyncio.AbstractEventLoop, positions: QueuePositions) -> None:
        self._loop, self._positions = loop, positions
        self._events: list[tuple[Job, Event]] = []
        self._releases: list[Callable[[], None]] = []

    def emit(self, job: Job, event: Event) -> None:
        """Add an event; after a job's end none but `Ended`."""
        if not job.progress.ended or isinstance(event, Ended):
            self._events.append((job, event))

    def release(self, then: Callable[[], None]) -> None:
        """Call `then` on the event loop after the turn, when nothing of it is in use."""
        self._releases.append(then)

    def post(self, within_turn: bool = False) -> None:
        """Hand over what there is; releases only after a turn."""
        for job, queued in self._positions.updates(time.monotonic(), within_turn):
            self.emit(job, queued)
        if self._events:
            self._loop.call_soon_threadsafe(_put_in_mailboxes, self._events)
            self._events = []
        if self._releases and not within_turn:
            self._loop.call_soon_threadsafe(_call_all, self._releases)
            self._releases = []


def _put_in_mailboxes(events: Sequence[tuple[Job, Event]]) -> None:
    """For the event loop's thread."""
    for job, event in events:
        job.take(event)


def _call_all(functions: Sequence[Callable[[], None]]) -> None:
    """For the event loop's thread."""
    for function in functions:
        function()
