"""The batcher alone: lanes by batch key, turns, row limits, and what clients get of them."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from darkroom_server.engine.batcher import Batcher, Lane
from darkroom_server.engine.engine import Engine
from darkroom_server.engine.slot import Slot
from darkroom_server.jobs.job import Job
from darkroom_server.jobs.shares import WEIGHTS


def job(
    key: str,
    images: int = 1,
    rows: int = 2,
    solo: bool = False,
    client: str = "",
    priority: str = "normal",
    evaluations: int = 10,
) -> Job:
    made = Job("id", "", arrived=0.0, held_bytes=0, client=client, priority=priority)
    steps = SimpleNamespace(timesteps=[0] * evaluations, first=0)
    request = SimpleNamespace(num_images=images)
    plan: Any = SimpleNamespace(batch_key=(key,), solo=solo, request=request, prompts=(None,) * rows, steps=steps)
    made.plan = plan
    return made


def batcher(*jobs: Job) -> Batcher:
    made = Batcher()
    for each in jobs:
        made.add(each)
    return made


def lane_of(made: Batcher) -> Lane:
    lane = made.next_lane()
    assert lane is not None
    return lane


class Device:
    """Takes turns as the engine does, in seconds of its own: an evaluation takes `fixed` and as much for each row as
    `row`."""

    def __init__(self, made: Batcher, row_limit: int, fixed: float = 0.8, row: float = 0.1) -> None:
        self.batcher, self.row_limit = made, row_limit
        self.fixed, self.row = fixed, row
        self.now = 0.0
        self.left: dict[Slot, int] = {}
        self.ended: dict[Job, float] = {}
        self.steps: Counter[str] = Counter()  # by client

    def seconds(self, rows: int) -> float:
        return self.fixed + self.row * rows

    def add(self, *jobs: Job, size: float = 1.0) -> None:
        """`size`: of their pictures; their evaluations take as many times as long."""
        for each in jobs:
            self.batcher.add(each).seconds = lambda rows: size * self.seconds(rows)

    def turn(self) -> list[Slot]:
        """One turn; its batch."""
        lane = lane_of(self.batcher)
        batch = lane.select_batch(self.row_limit)
        lane.begin_turn(batch, self.now)
        rows = sum(slot.rows for slot in batch)
        seconds = lane.seconds(rows)
        assert seconds is not None
        self.now += seconds
        costs: dict[str, tuple[float, float]] = {}
        for slot in batch:
            client, cost = slot.job.client, seconds * slot.rows / rows
            had, weighed = costs.get(client, (0.0, 0.0))
            costs[client] = had + cost, weighed + cost / WEIGHTS[slot.job.priority]
            self.steps[client] += 1
            left = self.left.get(slot, len(slot.job.plan.steps.timesteps)) - 1
            self.left[slot] = left
            if not left:
                self.batcher.drop([slot])
                if slot.job not in self.batcher.jobs():
                    self.ended[slot.job] = self.now
        self.batcher.charge(batch[0].job.plan.batch_key, costs)
        return batch

    def run(self, *until: Job) -> None:
        while not set(until) <= self.ended.keys():
            self.turn()


def test_an_empty_one_is_false() -> None:
    a = job("a")
    made = batcher(a)
    assert made
    made.drop_job(a)
    assert not made


def test_lanes_take_turns() -> None:
    made = batcher(job("a"), job("b"), job("c"), job("a"))
    order = [lane_of(made).first.job.plan.batch_key[0] for _ in range(6)]
    assert order == ["a", "b", "c"] * 2


def test_a_solo_lane_gives_one_slot() -> None:
    made = batcher(job("a", images=3, solo=True))
    assert len(lane_of(made).select_batch(100)) == 1


def test_each_image_has_a_slot_and_goes_alone() -> None:
    a = job("a", images=3)
    made = batcher(a)
    lane = lane_of(made)
    assert [slot.index for slot in lane.slots] == [0, 1, 2]
    made.drop(lane.slots[:1])
    assert [slot.index for slot in lane.slots] == [1, 2]
    assert made.jobs() == {a}
    assert a.progress.slots_left == 3


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 4), st.integers(1, 2)), min_size=1), st.integers(1, 12))
def test_a_batch_of_one_client_is_the_oldest_that_fit(jobs: list[tuple[str, int, int]], limit: int) -> None:
    made = batcher(*(job(key, images, rows) for key, images, rows in jobs))
    lane = lane_of(made)
    batch = lane.select_batch(limit)
    assert batch
    assert batch == lane.slots[: len(batch)]
    rows = sum(slot.rows for slot in batch)
    assert rows <= limit or len(batch) == 1
    following = lane.slots[len(batch) :]
    assert not following or rows + following[0].rows > limit


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=20), st.integers(0, 19))
def test_dropping_a_job_leaves_the_others(keys: list[str], which: int) -> None:
    jobs = [job(key, images=2, client=f"of {key}") for key in keys]
    made = batcher(*jobs)
    gone = jobs[which % len(jobs)]
    made.drop_job(gone)
    assert made.jobs() == set(jobs) - {gone}
    assert all(lane.slots for lane in made.lanes())


def test_one_that_moves_joins_those_of_its_next_stage() -> None:
    small, large = job("small", images=2), job("large")
    made = batcher(small, large)
    slots, latents = made.lane_of(("small",)).slots, torch.zeros(1)
    for left in (slots[1:], []):
        moved = slots[1 - len(left)]
        moved.batch_cache.get_or_make("of the first stage", torch.cat, [latents])
        assert made.move(moved, large.plan, latents) is made.lane_of(("large",))
        assert (moved.plan, moved.sample, moved.first_stage) == (large.plan, None, latents)
        assert [slot for lane in made.lanes() if lane is not made.lane_of(("large",)) for slot in lane.slots] == left
        assert not vars(moved.batch_cache)["_made"]
    engine: Any = SimpleNamespace(_batcher=made)
    assert Engine.samples(engine) == (1, 2), "in a second stage it has begun"
    lane = made.lane_of(("large",))
    assert lane.select_batch(1)[0].job is small, "it does not wait for those that came before"
    lane.begin_turn(lane.select_batch(100), 0.0)
    made.drop_job(small)
    made.drop_job(large)
    assert not made


def test_another_thread_may_read_a_slot_that_begins() -> None:
    slot = Slot(job("large"), 0)
    sample: Any = SimpleNamespace(done=False, conditions=(), evaluation=0)
    slot.sample = sample
    assert slot.rows == len(slot.plan.prompts)


def test_another_thread_may_read_a_slot_that_goes_on_to_a_stage() -> None:
    class Moving:
        """The engine takes its sample away after the first read."""

        plan = job("large").plan

        def __init__(self) -> None:
            self._reads = iter([SimpleNamespace(done=False, conditions=(None,), evaluation=4)])

        @property
        def sample(self) -> Any:
            return next(self._reads)

    slots: Any = [Moving(), Moving()]
    assert vars(Slot)["rows"].fget(slots[0]) == 1
    assert vars(Slot)["evaluations_left"].fget(slots[1]) == 6


# -------------------------------------------------------------------------------------------------- between clients


@pytest.mark.parametrize("lane", ["flood", "other"])
@pytest.mark.parametrize("row", [0.05, 0.1, 0.3])
def test_a_flood_delays_another_by_the_step_under_way(lane: str, row: float) -> None:
    """Its 8 steps take at most half as long again as alone, and the step that it came in."""
    flood = [job("flood", client="flood", evaluations=20) for _ in range(200)]
    light = job(lane, client="light", evaluations=8)
    alone = Device(Batcher(), 32, row=row)
    alone.add(light)
    alone.run(light)
    device = Device(Batcher(), 32, row=row)
    device.add(*flood)
    for _ in range(30):
        device.turn()
    arrived = device.now
    device.turn()
    step = device.now - arrived
    device.add(light)
    device.run(light)
    assert device.ended[light] - arrived <= 1.5 * alone.ended[light] + step


@pytest.mark.parametrize("limit", [2, 4])
def test_a_long_job_with_all_rows_does_not_keep_a_short_one_waiting(limit: int) -> None:
    device = Device(Batcher(), limit)
    long = [job("a", client=f"long {number}", evaluations=900) for number in range(limit // 2)]
    short = job("a", client="short", evaluations=8)
    device.add(*long)
    for _ in range(10):
        device.turn()
    device.add(short)
    began = device.now
    device.run(short)
    assert device.now - began <= 2 * 8 * device.seconds(limit)


@pytest.mark.parametrize("client", ["small", "large"])
def test_small_pictures_wait_for_one_step_of_a_large_one(client: str) -> None:
    """Of another client or the same, however often they come, and however many at once."""
    device = Device(Batcher(), row_limit=8)
    large = job("large", rows=1, evaluations=30, client="large")
    device.add(large, size=20)
    device.turn()
    longest = 20 * device.seconds(1)
    for number in range(12):
        small = [job("small", rows=1, evaluations=4, client=client) for _ in range(1 + number % 3)]
        came = device.now
        device.add(*small)
        device.turn()
        device.run(*small)
        assert device.now - came <= longest + 4 * device.seconds(3) + 1e-6
        for _ in range(number % 4):
            device.turn()
    device.run(large)


def test_clients_that_ask_for_as_much_fill_the_batch_together() -> None:
    device = Device(Batcher(), 32)
    device.add(*(job("a", client=str(number), evaluations=20) for number in range(16)))
    assert len(device.turn()) == 16


def test_one_clients_spare_rows_are_anothers() -> None:
    """A client alone in its lane has all of the batch, though another has work elsewhere."""
    device = Device(Batcher(), 32)
    device.add(*(job("a", client="x") for _ in range(40)), job("b", client="y"))
    assert max(len(device.turn()) for _ in range(4)) == 16


@pytest.mark.parametrize("keys", ["aa", "ab"])
def test_two_floods_share_the_time(keys: str) -> None:
    device = Device(Batcher(), 32)
    device.add(*(job(keys[0], client="x", evaluations=20) for _ in range(200)))
    device.add(*(job(keys[1], client="y", evaluations=20) for _ in range(200)))
    for _ in range(100):
        device.turn()
    assert device.steps["x"] == pytest.approx(device.steps["y"], rel=0.1)


@pytest.mark.parametrize("keys", ["aa", "ab"])
def test_priorities_are_weights(keys: str) -> None:
    device = Device(Batcher(), 32)
    device.add(*(job(keys[0], client="x", evaluations=20, priority="high") for _ in range(200)))
    device.add(*(job(keys[1], client="y", evaluations=20) for _ in range(200)))
    for _ in range(100):
        device.turn()
    assert device.steps["x"] == pytest.approx(4 * device.steps["y"], rel=0.3)


def test_a_clients_own_jobs_have_priorities_too() -> None:
    """The high one that comes last is done first, and the low one is done at last, whatever comes before it."""
    device = Device(Batcher(), 2)
    low, normal = job("a", priority="low"), [job("a") for _ in range(10)]
    device.add(low, *normal)
    device.turn()
    high = job("a", priority="high")
    device.add(high)
    for _ in range(40):
        device.run(*normal)
        normal = [job("a") for _ in range(10)]
        device.add(*normal)
        if low in device.ended:
            break
    order = sorted(device.ended, key=lambda each: device.ended[each])
    assert order.index(high) <= 2
    assert low in device.ended


def test_a_client_in_two_lanes_does_not_starve_one_of_them() -> None:
    """It shares one with another, and gets its whole share there."""
    device = Device(Batcher(), 32)
    device.add(*(job("a", client="x", evaluations=500) for _ in range(20)))
    device.add(*(job("a", client="y", evaluations=500) for _ in range(20)))
    lonely = job("b", client="x", evaluations=10)
    device.add(lonely)
    for _ in range(200):
        device.turn()
    assert lonely in device.ended


CLIENTS = st.tuples(
    st.sampled_from("abc"),  # lane
    st.sampled_from("uvwxyz"),  # client
    st.sampled_from(sorted(WEIGHTS)),
    st.integers(1, 3),  # images
    st.integers(1, 12),  # evaluations
    st.integers(1, 2),  # rows of each
    st.integers(0, 6),  # turns until the next one comes
)


@given(st.lists(CLIENTS, min_size=1, max_size=25), st.integers(2, 12))
def test_all_work_is_done_and_no_more(made: list[tuple[str, str, str, int, int, int, int]], row_limit: int) -> None:
    """Whoever comes and goes: each turn evaluates something, each image as often as it needs, and all jobs end."""
    device = Device(Batcher(), row_limit)
    jobs = []
    for key, client, priority, images, evaluations, rows, turns in made:
        jobs.append(job(key, images, rows, client=client, priority=priority, evaluations=evaluations))
        device.add(jobs[-1])
        for _ in range(turns):
            if device.batcher:
                batch = device.turn()
                assert 0 < sum(slot.rows for slot in batch) <= max(row_limit, batch[0].rows)
    needed = sum(images * evaluations for _, _, _, images, evaluations, _, _ in made)
    while device.batcher:
        assert device.steps.total() < needed
        device.turn()
    assert device.steps.total() == needed
    assert device.ended.keys() == set(jobs)


@given(st.lists(st.tuples(st.sampled_from("uvwxyz"), st.sampled_from(sorted(WEIGHTS))), min_size=1, max_size=6))
def test_nobody_starves(others: list[tuple[str, str]]) -> None:
    """A low job of one image, among clients that ask on and on, each time as another client, ends."""
    device = Device(Batcher(), 4)
    low = job("a", client="low", priority="low", evaluations=5)
    device.add(*(job("a", client=f"{client}-0", priority=priority) for client, priority in others), low)
    count = 0
    while low not in device.ended:
        count += 1
        assert count < 2000
        device.turn()
        while len(device.batcher.jobs()) < len(others) + 3:
            client, priority = others[count % len(others)]
            device.add(job("ab"[count % 2], client=f"{client}-{count}-{len(device.batcher.jobs())}", priority=priority))


@given(st.integers(1, 30), st.integers(1, 30))
def test_what_is_held_is_bounded(first: int, clients: int) -> None:
    """Samples that have begun keep their memory while others have their rows: not many more than a batch has."""
    device = Device(Batcher(), 8)
    most = 0
    for number in range(clients):
        device.add(*(job("a", client=str(number), evaluations=50) for _ in range(first)))
        device.turn()
        (lane,) = device.batcher.lanes()
        most = max(most, sum(len(party.begun) for party in lane.parties.values()))
    assert most <= 1.5 * 8 + 4
