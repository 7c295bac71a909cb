"""Queue positions and wait estimates of waiting jobs."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from darkroom_server.engine.batcher import Batcher, Lane
from darkroom_server.engine.slot import Slot
from darkroom_server.jobs.events import Queued
from darkroom_server.jobs.job import Job

INTERVAL = 0.1  # seconds between two rounds of updates, plus INTERVAL_PER_JOB for each waiting job
INTERVAL_PER_JOB = 0.004  # seconds; fifty times the cost of one update


class QueuePositions:
    """Computes each waiting job's position. A job waits while none of its slots is in its lane's batch."""

    def __init__(self, batcher: Batcher, row_limit: Callable[[Lane], int]) -> None:
        self._batcher = batcher
        self._row_limit = row_limit
        self._next = 0.0  # time.monotonic of the next round
        self.stale = False  # set when a job is admitted, starts or ends

    def updates(self, now: float, within_turn: bool = False) -> Iterator[tuple[Job, Queued]]:
        """The jobs whose position has changed since their last update. Within a turn those wait, too, that would be in
        their lane's next batch."""
        if not self.stale or now < self._next:
            return
        self.stale, self._next = False, now + INTERVAL
        for lane in self._batcher.lanes():
            waiting = dict.fromkeys(slot.job for slot in lane.slots if slot.job.progress.started is None)
            self._next += len(waiting) * INTERVAL_PER_JOB
            limit = self._row_limit(lane)
            active = set() if within_turn else {slot.job for slot in lane.select_batch(limit)}
            turns = turns_until_start(lane, limit)
            for position, job in enumerate(job for job in waiting if job not in active):
                if job.progress.position != position:
                    job.progress.position = position
                    seconds = lane.turn_seconds
                    estimate = seconds * max(1, turns[job]) if seconds is not None else None
                    yield job, Queued(position, estimate)


def turns_until_start(lane: Lane, row_limit: int) -> dict[Job, int]:
    """For each job of a lane, how many of the lane's turns pass before its first image begins: images begin in order,
    each as soon as the rows of those that are done leave room for it."""
    starts: dict[Job, int] = {}
    active: list[tuple[int, int]] = []  # the turn in which an image is done, and its rows
    now = rows = 0
    for slot in lane.slots:
        while active and (lane.solo or rows + slot.rows > row_limit):
            now, freed = heapq.heappop(active)
            rows -= freed
        heapq.heappush(active, (now + _evaluations_left(slot), slot.rows))
        rows += slot.rows
        starts.setdefault(slot.job, now)
    return starts


def _evaluations_left(slot: Slot) -> int:
    steps = slot.job.plan.steps
    done = steps.first if slot.sample is None else slot.sample.evaluation
    return max(1, len(steps.timesteps) - done)
