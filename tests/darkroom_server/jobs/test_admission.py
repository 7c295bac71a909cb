"""Who is let in: bounds of the queue, deadlines, and what is learnt of how long work takes."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom_server.errors import DeadlineTooShort, DeadlineUnreachable, QueueFull
from darkroom_server.jobs.admission import LEAST, MOST, UNKNOWN, Admission
from darkroom_server.jobs.job import Job
from darkroom_server.jobs.shares import SLACK, WEIGHTS, FairShares
from darkroom_server.jobs.speeds import Speeds


def job(client: str = "", size: int = 0, deadline: float | None = None) -> Job:
    return Job("id", "", arrived=0.0, held_bytes=size, client=client, deadline=deadline)


# ------------------------------------------------------------------------------------------------------- the queue


def test_one_client_cannot_fill_the_queue() -> None:
    admission = Admission(max_jobs=10, max_jobs_per_client=5, max_bytes=100)
    for _ in range(5):
        admission.add(job("flood"))
    with pytest.raises(QueueFull, match="5 jobs of this client are waiting already") as caught:
        admission.add(job("flood"))
    assert caught.value.retry_after
    for number in range(5):
        admission.add(job(f"other {number}"))
    with pytest.raises(QueueFull, match="10 jobs are waiting already"):
        admission.add(job("another"))


def test_pictures_count_by_their_bytes() -> None:
    admission = Admission(max_jobs=10, max_jobs_per_client=10, max_bytes=100)
    large, other = job(size=200), job(size=10)
    admission.add(large)  # alone one may be larger
    with pytest.raises(QueueFull, match="the pictures of the jobs that wait"):
        admission.add(other)
    large.held_bytes = 80  # once they are decoded
    admission.resize(large)
    admission.add(other)
    other.held_bytes = 30
    with pytest.raises(QueueFull):
        admission.refuse_if_large(other)
    admission.remove(large)
    admission.refuse_if_large(other)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40), st.sampled_from(["add", "remove", "resize"]))))
def test_the_counts_are_those_of_the_jobs_that_wait(actions: list[tuple[str, int, str]]) -> None:
    admission = Admission(max_jobs=6, max_jobs_per_client=3, max_bytes=100)
    waiting: list[Job] = []
    for client, size, action in actions:
        made = job(client, size)
        own, held = sum(each.client == client for each in waiting), sum(each.held_bytes for each in waiting)
        if action == "add":
            fits = len(waiting) < 6 and own < 3 and (not waiting or held + size <= 100)
            try:
                admission.add(made)
            except QueueFull:
                assert not fits
            else:
                assert fits
                waiting.append(made)
        elif waiting and action == "remove":
            gone = waiting.pop(size % len(waiting))
            admission.remove(gone)
            admission.remove(gone)
        elif waiting:
            changed = waiting[size % len(waiting)]
            changed.held_bytes = size
            admission.resize(changed)


def test_the_time_to_try_again_follows_the_estimates() -> None:
    admission = Admission(10, 10, 100)
    assert 0.7 * UNKNOWN < admission.retry_after() < 1.3 * UNKNOWN
    admission.accepted(50.0, time.monotonic())
    waits = [admission.retry_after() for _ in range(200)]
    assert 5 * 0.74 < min(waits) < max(waits) < 5 * 1.26
    assert len(set(waits)) > 100
    admission.accepted(0.1, time.monotonic())
    assert LEAST / 2 < admission.retry_after() < 1.0
    admission.accepted(1e6, time.monotonic())
    assert admission.retry_after() <= MOST * 1.25


# --------------------------------------------------------------------------------------------------------- deadlines


def test_a_deadline_that_cannot_be_met() -> None:
    admission = Admission(10, 10, 100)
    with pytest.raises(DeadlineUnreachable, match=r"done in about 12.0 s, and its deadline is in 5.0 s") as late:
        admission.refuse_if_late(job(deadline=105.0), end=12.0, alone=3.0, now=100.0)
    assert late.value.retry_after
    with pytest.raises(DeadlineTooShort, match=r"take about 9.0 s, and its deadline is in 5.0 s"):
        admission.refuse_if_late(job(deadline=105.0), end=12.0, alone=9.0, now=100.0)


@pytest.mark.parametrize(("deadline", "end"), [(None, 1000.0), (105.0, None), (105.0, 5.0), (105.0, 7.0)])
def test_a_deadline_that_may_be_met(deadline: float | None, end: float | None) -> None:
    """Without one, without an estimate, and where the estimate errs by less than half of what there is."""
    Admission(10, 10, 100).refuse_if_late(job(deadline=deadline), end, alone=end, now=100.0)


# ------------------------------------------------------------------------------------------------------------ shares


@given(
    st.lists(
        st.tuples(st.sampled_from(["join", "leave", "turn"]), st.sampled_from("abcd"), st.floats(0.001, 10.0)),
        max_size=80,
    )
)
def test_tags_stay_close(actions: list[tuple[str, str, float]]) -> None:
    """Whatever happens, nobody is more than the slack from another, so nobody waits for longer than that."""
    shares, active = FairShares(), set[str]()
    for action, client, cost in actions:
        if action == "join" and client not in active:
            shares.join(client)
            active.add(client)
        elif action == "leave" and client in active:
            shares.leave(client)
            active.remove(client)
        elif action == "turn" and active:
            due = shares.due(sorted(active), lambda client: 1)
            assert shares.tag(due) <= min(map(shares.tag, active)) + SLACK * shares.turn
            shares.charge({due: (cost, cost)})
        if active:
            tags = [shares.tag(each) for each in active]
            assert max(tags) - min(tags) <= 2 * SLACK * shares.turn + 1e-6


@pytest.mark.parametrize("priority", sorted(WEIGHTS))
def test_turns_are_shared_by_weight(priority: str) -> None:
    shares, turns, weight = FairShares(), {"a": 0, "b": 0}, WEIGHTS[priority]
    shares.join("a", weight)
    shares.join("b")
    for _ in range(500):
        due = shares.due("ab", lambda client: 1)
        turns[due] += 1
        shares.charge({due: (1.0, 1.0 / (weight if due == "a" else 1.0))})
    assert turns["a"] == pytest.approx(500 * weight / (1 + weight), abs=12)


def test_who_was_away_cannot_save_up() -> None:
    shares = FairShares()
    shares.join("a")
    for _ in range(100):
        shares.charge({"a": (1.0, 1.0)})
    shares.join("b")
    taken = 0
    while shares.tag("b") <= shares.tag("a"):
        shares.charge({"b": (1.0, 1.0)})
        taken += 1
    assert taken <= SLACK + 1


def test_one_whose_jobs_end_with_each_turn_is_charged_for_them() -> None:
    shares = FairShares()
    shares.join("a")
    for _ in range(3):
        shares.join("b")
        shares.leave("b")
        shares.charge({"b": (1.0, 1.0)})
    shares.join("b")
    assert shares.tag("b") > shares.tag("a")


# ------------------------------------------------------------------------------------------------------------ speeds


def plan(size: int = 64, model: str = "m", key: str = "k") -> Any:
    request = SimpleNamespace(model=model, width=size, height=size, deterministic=False)
    return SimpleNamespace(batch_key=(key, size), request=request, pixels=size * size)


def learnt(*seconds: tuple[int, float], **of: Any) -> Speeds:
    speeds = Speeds()
    for rows, each in seconds:
        speeds.evaluation_took(plan(**of), rows, each)
    return speeds


def test_what_was_measured_is_known() -> None:
    speeds = learnt((2, 0.1), (2, 0.1), (16, 0.5), (16, 0.5))
    assert speeds.evaluation(plan(), 2) == pytest.approx(0.1)
    assert speeds.evaluation(plan(), 9) == pytest.approx(0.3)
    assert speeds.evaluation(plan(), 16) == pytest.approx(0.5)
    assert speeds.evaluation(plan(), 32) == pytest.approx(0.75)
    assert speeds.evaluation(plan(model="other", key="other"), 2) is None


def test_another_kind_of_the_same_model_and_size_is_near() -> None:
    speeds = learnt((2, 0.1), (2, 0.1))
    assert speeds.evaluation(plan(key="with a control"), 2) == pytest.approx(0.1)
    assert speeds.evaluation(plan(size=60, key="a little smaller"), 2) == pytest.approx(0.1, rel=0.1)
    assert speeds.evaluation(plan(size=512, key="of another class"), 2) is None


def test_a_warm_up_and_hiccups_do_not_count() -> None:
    speeds = learnt((2, 9.0))
    assert speeds.evaluation(plan(), 2) is None
    speeds.evaluation_took(plan(), 2, 3.0)
    assert speeds.evaluation(plan(), 2) == pytest.approx(3.0)
    for _ in range(8):
        speeds.evaluation_took(plan(), 2, 0.1)
    speeds.evaluation_took(plan(), 2, 60.0)
    assert speeds.evaluation(plan(), 2) == pytest.approx(0.12)


def test_a_device_that_becomes_slower_is_noticed() -> None:
    speeds = learnt(*[(2, 0.1)] * 3, *[(2, 0.5)] * 40)
    assert speeds.evaluation(plan(), 2) == pytest.approx(0.5, rel=0.05)


def test_pictures() -> None:
    speeds = Speeds()
    assert speeds.picture(plan()) == 0.0
    for _ in range(2):
        speeds.picture_took("begin", plan(), 0.1)
        speeds.picture_took("decode", plan(), 0.3)
    assert speeds.picture(plan()) == pytest.approx(0.4)
