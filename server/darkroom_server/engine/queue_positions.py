"""Queue positions and wait estimates of waiting jobs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from darkroom_server.engine.batcher import Batcher, Lane
from darkroom_server.jobs.events import Queued
from darkroom_server.jobs.job import Job

INTERVAL = 0.1  # seconds between two rounds of updates, plus INTERVAL_PER_JOB for each waiting job
INTERVAL_PER_JOB = 0.004  # seconds; fifty times the cost of one update


class QueuePositions:
    """Computes each waiting job's position. A job waits while none of its slots is in its lane's batch."""

    def __init__(self, batcher: Batcher, row_limit: Callable[[Lane], int]) -> None:
        self._batcher = batcher
        self._row_limit = row_limit
        self._starts: deque[float] = deque(maxlen=16)  # time.monotonic at the latest starts of jobs
        self._next = 0.0  # time.monotonic of the next round
        self.stale = False  # set when a job is admitted, starts or ends

    def record_start(self, now: float) -> None:
        """A job started."""
        self._starts.append(now)

    def updates(self, now: float) -> Iterator[tuple[Job, Queued]]:
        """The jobs whose position has changed since their last update."""
        if not self.stale or now < self._next:
            return
        self.stale, self._next = False, now + INTERVAL
        for lane in self._batcher.lanes():
            waiting = dict.fromkeys(slot.job for slot in lane.slots if slot.job.progress.started is None)
            self._next += len(waiting) * INTERVAL_PER_JOB
            active = {slot.job for slot in lane.select_batch(self._row_limit(lane))}
            for position, job in enumerate(job for job in waiting if job not in active):
                if job.progress.position != position:
                    job.progress.position = position
                    yield job, Queued(position, self._estimate(position))

    def _estimate(self, position: int) -> float | None:
        if len(self._starts) < 2:
            return None
        interval = (self._starts[-1] - self._starts[0]) / (len(self._starts) - 1)
        return interval * (position + 1)
