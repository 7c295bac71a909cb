"""Forecasts: a copy of a lane is run ahead, by the rules of its batches, as if no other job came."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, cast

from darkroom_server.engine.batcher import parts
from darkroom_server.engine.slot import Slot
from darkroom_server.jobs.shares import WEIGHTS

if TYPE_CHECKING:
    from darkroom_server.engine.batcher import Lane
    from darkroom_server.jobs.job import Job

# Turns that are taken as one, of those that pass before them: what is far off need not be known to a turn.
COARSE = 0.5


class Estimate(NamedTuple):
    """Seconds until a job has its first turn, and until it is done."""

    start: float
    end: float


def forecast(
    lane: Lane,
    row_limit: int,
    seconds: Callable[[int], float],
    newcomer: Job | None = None,
    coarse: float = COARSE,
) -> dict[Job, Estimate]:
    """When jobs of a lane begin and are done, in the order in which they begin: those that wait, or one that comes now.
    The evaluations of an image are taken to last as long as its first one. May be called on another thread.

    :param seconds: from one turn to the next, by the rows of the first
    """
    lane = lane.copy(_Ahead)
    lane.seconds, seconds = cache(lane.seconds), cache(seconds)
    if newcomer is None:
        waiting = {slot for party in lane.parties.values() for _, _, slot in party.waiting}
    else:
        waiting = {_Ahead(Slot(newcomer, index, sys.maxsize)) for index in range(newcomer.request.num_images)}
        for each in waiting:
            lane.add(each)
    for client, party in lane.parties.items():  # the newcomer's, and those that came while the copy was made
        if client not in lane.shares:
            lane.shares.join(client, WEIGHTS[party.first.job.priority])
    found: dict[Job, Estimate] = {}
    now = turns = 0.0
    while waiting:
        batch = cast("list[_Ahead]", lane.select_batch(row_limit))
        lane.begin_turn(batch, now)
        turn = seconds(sum(slot.rows for slot in batch))
        for slot in waiting.intersection(batch):
            start, end = found.get(slot.job, (now, now))
            found[slot.job] = Estimate(start, max(end, now + slot.evaluations_left * turn))
        waiting.difference_update(batch)
        most = max(1, int(coarse * turns))
        passed = [min(most, slot.evaluations_left) for slot in batch]
        # Rows that become free are others' at once, if there are any.
        took = max(passed) if len(batch) == sum(map(len, lane.parties.values())) else sum(passed) / len(passed)
        costs = {client: (part * took * turn, own * took * turn) for client, (part, own) in parts(batch).items()}
        for slot, evaluations in zip(batch, passed, strict=True):
            slot.evaluations_left -= evaluations
            if not slot.evaluations_left:
                lane.drop(slot)
                if slot.job.client not in lane.parties:
                    lane.shares.leave(slot.job.client)
        lane.shares.charge(costs, took)
        now, turns = now + took * turn, turns + took
    return found


class _Ahead(Slot):
    """A slot of a forecast: it has no sample, but a number of evaluations."""

    __slots__ = ("evaluations_left", "rows")
    evaluations_left: int
    rows: int

    def __init__(self, slot: Slot) -> None:
        self.job, self.index, self.number = slot.job, slot.index, slot.number
        self.rows, self.evaluations_left = slot.rows, slot.evaluations_left
