"""When waiting jobs begin, foretold from what is ahead of them."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom_server.engine.batcher import Batcher, Lane, parts
from darkroom_server.engine.forecast import COARSE, forecast
from darkroom_server.engine.queue_positions import AT_ONCE, QueuePositions
from darkroom_server.jobs.events import Queued
from darkroom_server.jobs.job import Job
from darkroom_server.jobs.shares import WEIGHTS
from darkroom_server.jobs.speeds import Speeds


def job(
    evaluations: int, images: int = 1, rows: int = 2, solo: bool = False, client: str = "", priority: str = "normal"
) -> Job:
    made = Job("id", "", arrived=0.0, held_bytes=0, client=client, priority=priority)
    steps = SimpleNamespace(timesteps=[0] * evaluations, first=0, evaluations=evaluations)
    plan: Any = SimpleNamespace(
        batch_key=("key",),
        solo=solo,
        request=SimpleNamespace(num_images=images, model="m", width=64, height=64, deterministic=False),
        prompts=(None,) * rows,
        steps=steps,
        pixels=64 * 64,
    )
    plan.stages, plan.last = (plan,), plan
    made.plan = plan
    return made


def seconds(rows: int) -> float:
    """Of a turn."""
    return 1.0 + 0.25 * rows


def batcher_of(*jobs: Job) -> tuple[Batcher, Lane]:
    batcher = Batcher()
    for each in jobs:
        batcher.add(each)
    (lane,) = batcher.lanes()
    lane.seconds = seconds
    return batcher, lane


def foretold(*jobs: Job, row_limit: int) -> list[Any]:
    found = forecast(batcher_of(*jobs)[1], row_limit, lambda rows: 1.0, coarse=0)
    return [found[each] for each in jobs]


def test_one_begins_when_those_before_leave_room() -> None:
    jobs = [job(10), job(4), job(10), job(10, images=2), job(1)]
    assert foretold(*jobs, row_limit=4) == [(0, 10), (0, 4), (4, 14), (10, 24), (20, 21)]


def test_solo_jobs_follow_each_other() -> None:
    jobs = [job(10, images=2, solo=True), job(5, solo=True), job(5, solo=True)]
    assert foretold(*jobs, row_limit=32) == [(0, 20), (20, 25), (25, 30)]


JOBS = st.builds(
    job,
    evaluations=st.integers(1, 9),
    images=st.integers(1, 3),
    rows=st.integers(1, 2),
    client=st.sampled_from(["", "a", "b"]),
    priority=st.sampled_from(list(WEIGHTS)),
)


@given(st.lists(JOBS, min_size=1, max_size=12), st.booleans(), st.integers(1, 8), st.integers(0, 12))
def test_it_is_what_the_batcher_does(jobs: list[Job], comes: bool, row_limit: int, passed: int) -> None:
    """Of jobs of which some have begun, and of one that comes."""
    newcomer = jobs.pop() if comes and len(jobs) > 1 else None
    batcher, lane = batcher_of(*jobs)
    began: dict[Job, float] = {}
    now, turn = 0.0, 0
    found = None
    while turn <= passed or batcher:
        if turn == passed:
            before, now = set(began), 0.0
            found = forecast(lane, row_limit, seconds, newcomer, coarse=0)
            if newcomer is not None:
                batcher.add(newcomer)
                lane = batcher.lanes()[0]
                lane.seconds = seconds
        turn += 1
        if not batcher:
            continue
        batch = lane.select_batch(row_limit)
        lane.begin_turn(batch, now)
        took = seconds(sum(slot.rows for slot in batch))
        costs = {client: (part * took, own * took) for client, (part, own) in parts(batch).items()}
        for slot in batch:
            began.setdefault(slot.job, now)
            sample: Any = slot.sample or SimpleNamespace(evaluation=0, done=False, conditions=slot.plan.prompts)
            sample.evaluation += 1
            slot.sample = sample
            if sample.evaluation == len(slot.plan.steps.timesteps):
                batcher.drop([slot])
        batcher.charge(("key",), costs)
        now += took
    assert found is not None
    told = {newcomer} if newcomer is not None else set(jobs) - before
    assert {each: found[each].start for each in found if each not in before} == pytest.approx(
        {each: began[each] for each in told}
    )


def test_clients_may_come_and_go_meanwhile() -> None:
    """The engine's thread is between two of its own steps when another one reads."""
    stays, _, comes = jobs = [job(3, client=client) for client in ("stays", "goes", "comes")]
    batcher, lane = batcher_of(*jobs)
    lane.parties["goes"].drop(next(lane.parties["goes"].order()))
    batcher.shares.leave("comes")
    found = forecast(lane, 2, lambda rows: 1.0, newcomer := job(3, client="new"), coarse=0)
    assert found == {newcomer: (6, 9)}
    assert set(forecast(lane, 2, lambda rows: 1.0, coarse=0)) == {stays, comes}


def test_what_is_far_off_is_foretold_in_fewer_turns() -> None:
    jobs = [job(evaluations, client=client) for evaluations in (8, 20, 35, 50) for client in "abcd" for _ in range(20)]
    _, lane = batcher_of(*jobs)
    exact, fast = (forecast(lane, 32, seconds, coarse=coarse) for coarse in (0.0, COARSE))
    for each in jobs:
        assert fast[each] == pytest.approx(exact[each], rel=0.3, abs=20)


def test_who_waits_hears_of_estimates_once_there_are_any() -> None:
    batcher, speeds = Batcher(), Speeds()
    jobs = [job(10), job(10)]
    for each in jobs:
        batcher.add(each)
    positions = QueuePositions(batcher, lambda lane: 2, speeds)
    positions.stale = True
    assert list(positions.updates(1.0)) == [(jobs[1], Queued(0, None, None))]
    assert list(positions.updates(2.0)) == []
    for _ in range(2):
        speeds.evaluation_took(jobs[0].plan, 2, seconds=0.5)
    assert list(positions.updates(3.0)) == [(jobs[1], Queued(0, 5.0, 10.0))]
    assert list(positions.updates(4.0)) == []
    assert not positions.stale


def test_who_would_slow_down_another_waits_until_that_one_has_had_more() -> None:
    batcher, speeds = Batcher(), Speeds()
    others = [job(10, client="light"), job(40, client="heavy"), job(40, client="heavy")]
    for each in others:
        batcher.add(each)
    lane = batcher.lanes()[0]
    lane.seconds = lambda rows: 0.1 * rows
    for rows in (2, 2, 6, 6):
        speeds.evaluation_took(others[0].plan, rows, seconds=0.1 * rows)
    positions = QueuePositions(batcher, lambda lane: 32, speeds)
    batcher.add(newcomer := job(10, client="heavy"))
    assert not any(slot.job is newcomer for slot in lane.select_batch(32))
    batcher.drop([slot for slot in lane.slots if slot.job is newcomer])
    found = {client: positions.estimate(job(10, client=client), 32, now=0.0) for client in ("heavy", "another")}
    assert found["another"] is not None
    assert found["another"].start == 0
    assert found["heavy"] is not None
    assert found["heavy"].start == pytest.approx(3 * 0.2)  # of the light one alone


def test_estimates_are_in_seconds_from_turn_to_turn() -> None:
    batcher = Batcher()
    running, first, second = jobs = [job(30), job(30), job(30)]
    for each in jobs:
        batcher.add(each)
    running.progress.started = 0.0
    positions = QueuePositions(batcher, lambda lane: 2, Speeds())
    lane = batcher.lanes()[0]
    for turn in range(5):
        lane.begin_turn(lane.select_batch(2), 0.5 * turn)
    positions.stale = True
    found = dict(positions.updates(now=100.0))
    assert found == {
        first: Queued(0, pytest.approx(15.0), pytest.approx(30.0)),
        second: Queued(1, pytest.approx(30.0), pytest.approx(45.0)),
    }


def test_many_hear_of_it_a_few_at_a_time() -> None:
    """Else the event loop does nothing else meanwhile."""
    batcher = Batcher()
    jobs = [job(30) for _ in range(2 * AT_ONCE + 6)]
    for each in jobs:
        batcher.add(each)
    positions = QueuePositions(batcher, lambda lane: 2, measured(r2=0.1))
    positions.stale = True
    first = positions.updates(100.0)
    assert [each for each, _ in first] == jobs[1 : 1 + AT_ONCE]
    jobs[AT_ONCE + 1].progress.ended = True
    jobs[AT_ONCE + 2].progress.started = 100.0
    second = dict(positions.updates(101.0))
    assert list(second) == jobs[AT_ONCE + 3 : 2 * AT_ONCE + 3]
    assert second[jobs[AT_ONCE + 3]] == Queued(
        AT_ONCE + 2, *(pytest.approx(3.0 * (AT_ONCE + more) - 1) for more in (3, 4))
    )
    assert [each for each, _ in positions.updates(102.0)] == jobs[2 * AT_ONCE + 3 :]
    assert positions.updates(103.0) == []


def test_a_lane_may_end_before_its_turn_to_hear_comes() -> None:
    batcher = Batcher()
    many, other = [job(30) for _ in range(AT_ONCE + 2)], job(30)
    other.plan.batch_key = ("other",)
    for each in (*many, other):
        batcher.add(each)
    positions = QueuePositions(batcher, lambda lane: lane.first.rows, Speeds())
    positions.stale = True
    assert [each for each, _ in positions.updates(100.0)] == many[1 : 1 + AT_ONCE]
    batcher.drop_job(other)
    assert [each for each, _ in positions.updates(101.0)] == many[1 + AT_ONCE :]


def test_within_a_turn_those_wait_that_would_be_next() -> None:
    batcher = Batcher()
    batcher.add(job(30))
    positions = QueuePositions(batcher, lambda lane: 32, Speeds())
    positions.stale = True
    assert dict(positions.updates(now=100.0)) == {}
    positions.stale = True
    assert [queued.position for _, queued in positions.updates(now=200.0, within_turn=True)] == [0]


# ------------------------------------------------------------------------------------------ of one that would come now


def measured(**seconds: float) -> Speeds:
    """By numbers of rows: ``r2=0.1``."""
    speeds = Speeds()
    for rows, each in seconds.items():
        for _ in range(3):
            speeds.evaluation_took(job(1).plan, int(rows[1:]), each)
    return speeds


def test_nothing_is_estimated_that_was_not_measured() -> None:
    positions = QueuePositions(Batcher(), lambda lane: 4, Speeds())
    assert positions.estimate(job(10), 4, now=0.0) is None
    assert positions.alone(job(10), 4) is None


def test_one_that_is_alone() -> None:
    speeds = measured(r2=0.1, r4=0.15)
    for part in ("begin", "decode"):
        for _ in range(2):
            speeds.picture_took(part, job(1).plan, 0.25)
    positions = QueuePositions(Batcher(), lambda lane: 4, speeds)
    assert positions.estimate(job(10), 4, now=0.0) == (0.0, pytest.approx(1.5))
    assert positions.estimate(job(10, images=2), 4, now=0.0) == (0.0, pytest.approx(2.5))
    assert positions.alone(job(10, images=4), 4) == pytest.approx(20 * 0.15 + 2.0)
    assert positions.estimate(job(0), 4, now=0.0) == (0.0, pytest.approx(0.5))  # an edit that changes nothing


def test_one_that_waits_for_others() -> None:
    batcher = Batcher()
    for _ in range(4):
        batcher.add(job(10))
    positions = QueuePositions(batcher, lambda lane: 4, measured(r2=0.1, r4=0.15))
    assert positions.estimate(job(8), 4, now=0.0) == (pytest.approx(3.0), pytest.approx(3.8))  # alone at last
    assert positions.alone(job(8), 4) == pytest.approx(0.8)
    assert not [each for each in batcher.jobs() if len(each.plan.steps.timesteps) == 8]  # it is not there yet


def test_one_of_another_client_does_not_wait_for_a_flood() -> None:
    batcher = Batcher()
    for _ in range(100):
        batcher.add(job(10, client="flood"))
    positions = QueuePositions(batcher, lambda lane: 4, measured(r2=0.1, r4=0.15))
    assert positions.estimate(job(8, client="flood"), 4, now=0.0) == (pytest.approx(75.0), pytest.approx(75.8))
    assert positions.estimate(job(8, client="light"), 4, now=0.0) == (0.0, pytest.approx(1.2))


@pytest.mark.parametrize("large", [False, True])
def test_a_second_stage_takes_its_own_time(large: bool) -> None:
    """As measured; else as much more for each evaluation as it has pixels."""
    speeds, one, second = measured(r2=0.1), job(10), job(5).plan
    second.batch_key, second.pixels, second.request.width, second.request.height = ("large",), 128 * 128, 128, 128
    for _ in range(3 if large else 0):
        speeds.evaluation_took(second, 2, 0.6)
    one.plan.stages, one.plan.last = (one.plan, second), second
    positions = QueuePositions(Batcher(), lambda lane: 4, speeds)
    expected = 10 * 0.1 + 5 * (0.6 if large else 0.4)
    assert positions.estimate(one, 4, now=0.0) == (0.0, pytest.approx(expected))
    assert positions.alone(one, 4) == pytest.approx(expected)
