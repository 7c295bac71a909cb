"""When waiting jobs begin, foretold from what is ahead of them."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom_server.engine.batcher import Batcher, Lane
from darkroom_server.engine.queue_positions import QueuePositions, turns_until_start
from darkroom_server.jobs.events import Queued
from darkroom_server.jobs.job import Job
from darkroom_server.jobs.queue_rate import LEAST, MOST, QueueRate


def job(evaluations: int, images: int = 1, rows: int = 2, solo: bool = False) -> Job:
    made = Job("id", "", arrived=0.0, held_bytes=0)
    steps = SimpleNamespace(timesteps=[0] * evaluations, first=0)
    plan: Any = SimpleNamespace(
        batch_key=("key",),
        solo=solo,
        request=SimpleNamespace(num_images=images),
        prompts=(None,) * rows,
        steps=steps,
    )
    made.plan = plan
    return made


def lane_of(*jobs: Job) -> Lane:
    batcher = Batcher()
    for each in jobs:
        batcher.add(each)
    lane = batcher.next_lane()
    assert lane is not None
    return lane


def test_one_begins_when_those_before_leave_room() -> None:
    jobs = [job(10), job(4), job(10), job(10, images=2), job(1)]
    turns = turns_until_start(lane_of(*jobs), row_limit=4)
    assert [turns[each] for each in jobs] == [0, 0, 4, 10, 20]


def test_solo_jobs_follow_each_other() -> None:
    jobs = [job(10, images=2, solo=True), job(5, solo=True), job(5, solo=True)]
    turns = turns_until_start(lane_of(*jobs), row_limit=32)
    assert [turns[each] for each in jobs] == [0, 20, 25]


JOBS = st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(1, 2))  # evaluations, images, rows of each


@given(st.lists(JOBS, min_size=1, max_size=12), st.integers(1, 8))
def test_it_is_what_the_batcher_does(made: list[tuple[int, int, int]], row_limit: int) -> None:
    jobs = [job(evaluations, images, rows) for evaluations, images, rows in made]
    batcher = Batcher()
    for each in jobs:
        batcher.add(each)
    foretold = turns_until_start(batcher.lanes()[0], row_limit)
    began: dict[Job, int] = {}
    left: dict[Any, int] = {}
    turn = 0
    while (lane := batcher.next_lane()) is not None:
        batch = lane.select_batch(row_limit)
        for slot in batch:
            began.setdefault(slot.job, turn)
            left[slot] = left.get(slot, len(slot.job.plan.steps.timesteps)) - 1
        batcher.drop([slot for slot in batch if not left[slot]])
        turn += 1
    assert foretold == began


def test_estimates_are_in_seconds_from_turn_to_turn() -> None:
    batcher = Batcher()
    running, first, second = jobs = [job(30), job(30), job(30)]
    for each in jobs:
        batcher.add(each)
    running.progress.started = 0.0
    positions = QueuePositions(batcher, lambda lane: 2)
    lane = batcher.lanes()[0]
    for turn in range(5):
        lane.record_turn(0.5 * turn)
    positions.stale = True
    found = dict(positions.updates(now=100.0))
    assert found == {first: Queued(0, pytest.approx(15.0)), second: Queued(1, pytest.approx(30.0))}


def test_within_a_turn_those_wait_that_would_be_next() -> None:
    batcher = Batcher()
    batcher.add(job(30))
    positions = QueuePositions(batcher, lambda lane: 32)
    positions.stale = True
    assert dict(positions.updates(now=100.0)) == {}
    positions.stale = True
    assert [queued.position for _, queued in positions.updates(now=200.0, within_turn=True)] == [0]


# -------------------------------------------------------------------------------------------- when to try again


def test_the_time_to_try_again_follows_the_rate() -> None:
    rate = QueueRate()
    for second in range(40):
        rate.record_end(second / 4)
    waits = [rate.retry_after(waiting=200, now=10.0) for _ in range(200)]
    assert 5 * 0.74 < min(waits) < max(waits) < 5 * 1.26
    assert len(set(waits)) > 100
    assert LEAST / 2 < rate.retry_after(waiting=1, now=10.0) < 1.0
    assert rate.retry_after(waiting=10_000, now=10.0) <= MOST * 1.25
