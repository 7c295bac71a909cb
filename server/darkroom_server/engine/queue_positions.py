"""What waiting jobs are told: their positions, and when they will begin and be done."""

from __future__ import annotations

import heapq
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from darkroom_server.engine.batcher import Batcher, Lane, evaluations_left
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


class Turns(NamedTuple):
    """How many of its lane's turns pass before a job's first image begins, and before its last is done."""

    start: float
    end: float


class Estimate(NamedTuple):
    """Seconds until a job has its first turn, and until it is done."""

    start: float
    end: float


@dataclass(slots=True)
class _Foretold:
    """Of the jobs of one lane and client that come now."""

    until: float  # time.monotonic: then it is to be computed anew
    seconds: float | None  # of a turn
    start: float  # time.monotonic; later with each job that comes
    rounds: float  # turns for each of its evaluations: more than one where its images follow each other


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
            self._round = self._updates(now, within_turn)
            found = list(islice(self._round, AT_ONCE))
        return found

    def _updates(self, began: float, within_turn: bool) -> Iterator[tuple[Job, Queued]]:
        for lane in self._batcher.lanes():
            if not lane.parties:  # since the round began
                continue
            limit = self._row_limit(lane)
            active = set() if within_turn else {slot.job for slot in lane.select_batch(limit)}
            turns = foretell(lane, limit)
            waiting = [job for job in turns if job.progress.started is None]
            self._next += len(waiting) * INTERVAL_PER_JOB
            seconds = self._turn_seconds(lane, waiting[0], limit) if waiting else None  # they fill the batch
            known = seconds is not None
            self.stale |= not known and bool(waiting)  # until the first of their kind have been measured
            for position, job in enumerate(job for job in waiting if job not in active):
                if job.progress.started is not None or job.progress.ended:  # since the round began
                    continue
                if job.progress.position != position or (known and not job.progress.estimated):
                    job.progress.position, job.progress.estimated = position, known
                    found = self._estimate(job, turns[job], seconds, at_least=1)
                    if found is not None:
                        found = Estimate(*(max(0.0, each - (self._now - began)) for each in found))
                    yield job, Queued(position, *(found or (None, None)))

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
        own = self._estimate(job, Turns(0, evaluations * last.rounds), last.seconds)
        assert own is not None
        start = max(0.0, last.start - now)
        last.start = max(now, last.start) + last.seconds * evaluations * _rows(job) / row_limit if start else last.start
        return Estimate(start, start + own.end)

    def _foretold(self, job: Job, row_limit: int, now: float) -> _Foretold:
        """What is known for jobs like this one, for as long as keeps the cost of it small."""
        began = time.monotonic()
        lane = self._batcher.lane_of(job.plan.batch_key)
        if lane is None:
            lane = Lane(job.plan.solo, self._batcher.shares)
        turns, seconds = _turns(lane, row_limit, job), self._turn_seconds(lane, job, row_limit)
        evaluations = max(1, job.plan.steps.evaluations)
        start = now + self._rest_of_turn(now) + turns.start * (seconds or 0.0)
        many = sum(len(party) for party in list(lane.parties.values())) >= MANY
        until = now + (PATIENCE * (time.monotonic() - began) if many else 0.0)
        return _Foretold(until, seconds, start, (turns.end - turns.start) / evaluations)

    def alone(self, job: Job, row_limit: int) -> float | None:
        """Seconds that a job would take if there were no others; None if nothing like it has been measured."""
        rows = min(row_limit, _rows(job))
        seconds = self._speeds.evaluation(job.plan, rows)
        lane = Lane(job.plan.solo, self._batcher.shares)
        found = self._estimate(job, foretell(lane, row_limit, job)[job], seconds)
        return found.end if found is not None else None

    def _estimate(self, job: Job, turns: Turns, seconds: float | None, at_least: int = 0) -> Estimate | None:
        """From the seconds of a turn."""
        if seconds is None:
            return None
        pictures = job.request.num_images * self._speeds.picture(job.plan.last)
        start, end = (seconds * max(at_least, turn) for turn in turns)
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

    def _turn_seconds(self, lane: Lane, job: Job, row_limit: int) -> float | None:
        """Seconds from one of a lane's turns to the next, with the rows that a job adds to it: as measured of late,
        else as if the turns of other lanes took as long."""
        rows = 0
        for slot in lane.order(job):
            rows += slot.rows
            if rows >= row_limit:
                break
        rows = min(row_limit, rows)
        expected = self._speeds.evaluation(job.plan, rows)
        if lane.turn_seconds is None:
            others = sum(each is not lane for each in self._batcher.lanes())
            return expected * (1 + others) if expected is not None else None
        usual = self._speeds.evaluation(job.plan, round(lane.turn_rows))
        return lane.turn_seconds * (expected / usual if expected and usual else 1.0)

    def _rest_of_turn(self, now: float) -> float:
        """Seconds until the turn that is under way ends."""
        rest = 0.0
        for lane in self._batcher.lanes():
            if lane.busy and lane.last_turn is not None:
                rows = round(lane.turn_rows)
                expected = lane.seconds(rows)
                rest = max(rest, lane.last_turn + expected - now if expected is not None else 0.0)
        return rest


def foretell(lane: Lane, row_limit: int, newcomer: Job | None = None) -> dict[Job, Turns]:
    """When each job of a lane begins and is done, in its turns, and in the order in which they begin: images begin in
    order, each as soon as the rows of those that are done leave room for it. May be called on another thread."""
    found: dict[Job, Turns] = {}
    active: list[tuple[int, int]] = []  # the turn in which an image is done, and its rows
    now = rows = 0
    for slot in lane.order(newcomer):
        while active and (lane.solo or rows + slot.rows > row_limit):
            now, freed = heapq.heappop(active)
            rows -= freed
        end = now + evaluations_left(slot)
        heapq.heappush(active, (end, slot.rows))
        rows += slot.rows
        before = found.get(slot.job)
        found[slot.job] = Turns(now, end) if before is None else Turns(before.start, max(before.end, end))
    return found


def _turns(lane: Lane, row_limit: int, newcomer: Job) -> Turns:
    """As `foretell`, of a job that comes now; later where with it batches would be too slow for a client that asks for
    little: until a client is done, or smaller batches have come to it."""
    turns, batch = foretell(lane, row_limit, newcomer)[newcomer], lane.select_batch(row_limit, newcomer)
    rows = sum(slot.rows for slot in batch)
    begins = any(slot.job is newcomer for slot in batch)
    if begins or lane.solo or rows + len(newcomer.plan.prompts) > row_limit:  # there is no room anyway
        return turns
    found = foretell(lane, rows, newcomer)
    ends = defaultdict[str, float](float)  # of other clients' last jobs
    for job, each in found.items():
        if job.client != newcomer.client:
            ends[job.client] = max(ends[job.client], each.end)
    later = max(0, min([found[newcomer].start, *ends.values()]) - turns.start)
    return Turns(turns.start + later, turns.end + later)


def _rows(job: Job) -> int:
    return len(job.plan.prompts) * job.request.num_images
