"""Tells the jobs that wait how long they will."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from darkroom_server.engine.batcher import Batcher, Lane
from darkroom_server.jobs.events import Queued
from darkroom_server.jobs.job import Job

INTERVAL = 0.1  # seconds between two rounds, and those of JOB more for each job that waits
JOB = 0.004  # fifty times what telling one takes


class WaitingRoom:
    """Works out each waiting job's position. A job waits when its lane's batch is full without it."""

    def __init__(self, batcher: Batcher, row_limit: Callable[[Lane], int]) -> None:
        self._batcher = batcher
        self._row_limit = row_limit
        self._starts: deque[float] = deque(maxlen=16)  # when the last jobs began
        self._next = 0.0  # time.monotonic of the next round
        self.stale = False  # set when jobs came, began or went

    def started(self, now: float) -> None:
        """A job began."""
        self._starts.append(now)

    def news(self, now: float) -> Iterator[tuple[Job, Queued]]:
        """The jobs whose position is not what they were told last."""
        if not self.stale or now < self._next:
            return
        self.stale, self._next = False, now + INTERVAL
        for lane in self._batcher.lanes():
            waiting = dict.fromkeys(slot.job for slot in lane.slots if slot.job.progress.started is None)
            self._next += len(waiting) * JOB
            begun = {slot.job for slot in lane.select_batch(self._row_limit(lane))}
            for position, job in enumerate(job for job in waiting if job not in begun):
                if job.progress.position != position:
                    job.progress.position = position
                    yield job, Queued(position, self._estimate(position))

    def _estimate(self, position: int) -> float | None:
        if len(self._starts) < 2:
            return None
        each = (self._starts[-1] - self._starts[0]) / (len(self._starts) - 1)
        return each * (position + 1)
