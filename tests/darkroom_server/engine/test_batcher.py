"""The batcher alone: lanes by batch key, turns, row limits."""

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from darkroom_server.engine.batcher import Batcher
from darkroom_server.jobs.job import Job


def job(key: str, images: int = 1, rows: int = 2, solo: bool = False) -> Job:
    made = Job("id", "", arrived=0.0, held_bytes=0)
    request = SimpleNamespace(num_images=images)
    plan: Any = SimpleNamespace(batch_key=(key,), solo=solo, request=request, prompts=(None,) * rows)
    made.plan = plan
    return made


def batcher(*jobs: Job) -> Batcher:
    made = Batcher()
    for each in jobs:
        made.add(each)
    return made


def test_an_empty_one_is_false() -> None:
    a = job("a")
    made = batcher(a)
    assert made
    made.drop_job(a)
    assert not made


def test_lanes_take_turns() -> None:
    made = batcher(job("a"), job("b"), job("c"), job("a"))
    order = [made.next_lane().slots[0].job.plan.batch_key[0] for _ in range(6)]
    assert order == ["a", "b", "c"] * 2


def test_a_solo_lane_gives_one_slot() -> None:
    made = batcher(job("a", images=3, solo=True))
    assert len(made.next_lane().select_batch(100)) == 1


def test_each_image_has_a_slot_and_goes_alone() -> None:
    a = job("a", images=3)
    made = batcher(a)
    lane = made.next_lane()
    assert [slot.index for slot in lane.slots] == [0, 1, 2]
    made.drop(lane.slots[:1])
    assert [slot.index for slot in lane.slots] == [1, 2]
    assert made.jobs() == {a}
    assert a.progress.slots_left == 3


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 4), st.integers(1, 2)), min_size=1), st.integers(1, 12))
def test_a_batch_is_the_oldest_that_fit(jobs: list[tuple[str, int, int]], limit: int) -> None:
    made = batcher(*(job(key, images, rows) for key, images, rows in jobs))
    lane = made.next_lane()
    batch = lane.select_batch(limit)
    assert batch
    assert batch == lane.slots[: len(batch)]
    rows = sum(slot.rows for slot in batch)
    assert rows <= limit or len(batch) == 1
    following = lane.slots[len(batch) :]
    assert not following or rows + following[0].rows > limit


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=20), st.integers(0, 19))
def test_dropping_a_job_leaves_the_others(keys: list[str], which: int) -> None:
    jobs = [job(key, images=2) for key in keys]
    made = batcher(*jobs)
    gone = jobs[which % len(jobs)]
    made.drop_job(gone)
    assert made.jobs() == set(jobs) - {gone}
    assert all(lane.slots for lane in made.lanes())
