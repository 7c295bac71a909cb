"""What waiting jobs are told: their positions, and when they will begin and be done."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from darkroom_server.engine.batcher import Batcher, Lane
from darkroom_server.engine.forecast import Estimate, forecast
from darkroom_server.jobs.events import Queued

if TYPE_CHECKING:
    from darkroom_server.jobs.job import Job
    from darkroom_server.jobs.speeds import Speeds

INTERVAL = 0.1  # seconds between two rounds of updates, plus INTERVAL_PER_JOB for each waiting job
PATIENCE = 50  # times what it takes to compute estimates, until they are computed anew
MANY = 64  # images of a lane: with fewer, estimates are always computed anew
REMEMBERED = 1024  # estimates
INTERVAL_PER_JOB = 0.004  # seconds; fifty times the cost of one update
AT_ONCE = 4  # updates: their streams write them all before the event loop comes to anything else


@dataclass(slots=True)
class _Foretold:
    """Of the jobs of one lane and client that come now."""

    until: float  # time.monotonic: then it is to be computed anew
    start: float  # time.monotonic; later with each job that comes
    seconds: float | None  # for each of its evaluations, from its start on


class QueuePositions:
    """Computes each waiting job's position. A job waits while none of its slots is in its lane's batch."""

    def __init__(self, batcher: Batcher, row_limit: Callable[[Lane], int], speeds: Speeds) -> None:
        self._batcher = batcher
        self._row_limit = row_limit
        self._speeds = speeds
        self._next = 0.0  # time.monotonic of the next round
        self._round: Iterator[tuple[Job, Queued]] = iter(())  # what is left of the last one
        self._now = 0.0  # time.monotonic
        self._latest: dict[Hashable, _Foretold] = {}  # by batch key and client; for the event loop
        self.stale = False  # set when a job is admitted, starts or ends

    def updates(self, now: float, within_turn: bool = False) -> list[tuple[Job, Queued]]:
        """The jobs whose position has changed since their last update, or that can be estimated only now; of many the
        next few. Within a turn those wait, too, that would be in their lane's next batch."""
        self._now = now
        found = list(islice(self._round, AT_ONCE))
        if not found and self.stale and now >= self._next:
            self.stale, self._next = False, now + INTERVAL
            self._round = self._updates(within_turn)
            found = list(islice(self._round, AT_ONCE))
        return found

    def _updates(self, within_turn: bool) -> Iterator[tuple[Job, Queued]]:
        for lane in self._batcher.lanes():
            if not lane.parties:  # since the round began
                continue
            limit = self._row_limit(lane)
            active = set() if within_turn else {slot.job for slot in lane.select_batch(limit)}
            if all(slot.job.progress.started is not None or slot.job in active for slot in lane.slots):
                continue
            seconds = self._seconds(lane, lane.first.job)
            known, began = seconds is not None, self._now + (self._rest_of_turn(self._now) if within_turn else 0.0)
            found = forecast(lane, limit, seconds or (lambda rows: 1.0))
            waiting = [job for job in found if job.progress.started is None]
            self._next += len(waiting) * INTERVAL_PER_JOB
            self.stale |= not known and bool(waiting)  # until the first of their kind have been measured
            for position, job in enumerate(job for job in waiting if job not in active):
                if job.progress.started is not None or job.progress.ended:  # since the round began
                    continue
                if job.progress.position != position or (known and not job.progress.estimated):
                    job.progress.position, job.progress.estimated = position, known
                    passed = self._now - began
                    whole = (max(0.0, each - passed) for each in self._whole(job, found[job]))
                    yield job, Queued(position, *(whole if known else (None, None)))

    def estimate(self, job: Job, row_limit: int, now: float) -> Estimate | None:
        """When a job would begin and be done that came now; None if nothing like it has been measured. May be called on
        another thread."""
        key = (job.plan.batch_key, job.client)
        last = self._latest.get(key)
        if last is None or now >= last.until:
            last = self._foretold(job, row_limit, now)
            if len(self._latest) >= REMEMBERED:
                self._latest.clear()
            self._latest[key] = last
        if last.seconds is None:
            return None
        evaluations = job.plan.steps.evaluations
        own = self._whole(job, Estimate(0.0, evaluations * last.seconds))
        start = max(0.0, last.start - now)
        last.start = max(now, last.start) + last.seconds * evaluations * _rows(job) / row_limit if start else last.start
        return Estimate(start, start + own.end)

    def _foretold(self, job: Job, row_limit: int, now: float) -> _Foretold:
        """What is known for jobs like this one, for as long as keeps the cost of it small."""
        began = time.monotonic()
        lane = self._batcher.lane_of(job.plan.batch_key)
        if lane is None:
            lane = Lane(job.plan.solo, self._batcher.shares)
        seconds = self._seconds(lane, job)
        if seconds is None:
            return _Foretold(now, now, None)
        start, end = forecast(lane, row_limit, seconds, job)[job]
        many = sum(len(party) for party in list(lane.parties.values())) >= MANY
        until = now + (PATIENCE * (time.monotonic() - began) if many else 0.0)
        evaluations = max(1, job.plan.steps.evaluations)
        return _Foretold(until, now + self._rest_of_turn(now) + start, (end - start) / evaluations)

    def alone(self, job: Job, row_limit: int) -> float | None:
        """Seconds that a job would take if there were no others; None if nothing like it has been measured."""
        found = QueuePositions(Batcher(), self._row_limit, self._speeds).estimate(job, row_limit, now=0.0)
        return found.end if found is not None else None

    def _whole(self, job: Job, first: Estimate) -> Estimate:
        """With the stages after the first, and with what a picture takes beside its evaluations."""
        pictures = job.request.num_images * self._speeds.picture(job.plan.last)
        start, end = first
        return Estimate(start, end + (end - start) * self._later_stages(job) + pictures)

    def _later_stages(self, job: Job) -> float:
        """How many times as long as its first stage the stages after it take: as measured, else by their pixels."""
        first, later = job.plan, job.plan.stages[1:]
        known = self._speeds.evaluation(first, rows := _rows(job))
        by_pixels = (known or 0.0) / first.pixels
        costs = (
            each.steps.evaluations * (self._speeds.evaluation(each, rows) or by_pixels * each.pixels) for each in later
        )
        return sum(costs) / (known * max(1, first.steps.evaluations)) if known else 0.0

    def _seconds(self, lane: Lane, job: Job) -> Callable[[int], float] | None:
        """Seconds from one of a lane's turns to the next, by the rows that a job like this one shares: as measured of
        late, else as if the turns of other lanes took as long. None: not known yet."""
        last, usual = lane.turn_seconds, self._speeds.evaluation(job.plan, round(lane.turn_rows))
        if usual:
            others = sum(each is not lane for each in self._batcher.lanes())
            times = last / usual if last is not None else 1 + others
            return lambda rows: times * (self._speeds.evaluation(job.plan, rows) or 0.0)
        return (lambda rows: last) if last is not None else None

    def _rest_of_turn(self, now: float) -> float:
        """Seconds until the turn that is under way ends."""
        rest = 0.0
        for lane in self._batcher.lanes():
            if lane.busy and lane.last_turn is not None:
                rows = round(lane.turn_rows)
                expected = lane.seconds(rows)
                rest = max(rest, lane.last_turn + expected - now if expected is not None else 0.0)
        return rest


def _rows(job: Job) -> int:
    return len(job.plan.prompts) * job.request.num_images
