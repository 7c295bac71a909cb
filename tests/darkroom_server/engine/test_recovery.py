"""Recovery without a device: each item its own outcome, whatever fails; what row limits learn, and forget.

How rarely limits are tried again, see test_out_of_memory.
"""

import gc
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from darkroom_plugins.errors import InvalidRequest, PluginFailed
from darkroom_server.engine.recovery import PATIENCE, Recovery, RowLimits
from darkroom_server.errors import DeviceLost, OutOfMemory

WORK = "denoise"
COUNTS = st.integers(0, 24)
ITEMS = st.sets(st.integers(0, 23))


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> Iterator[None]:
    """Each retry collects garbage, as it must; not through all that other tests have left, thousands of times."""
    gc.freeze()
    yield
    gc.unfreeze()


def test_an_error_keeps_no_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the frames that it and its causes were raised in: a whole batch."""
    monkeypatch.setattr(logging.getLogger("darkroom_server.errors"), "disabled", True)  # pytest keeps its records
    tensors: list[weakref.ref[torch.Tensor]] = []

    def run(items: Sequence[int]) -> list[int]:
        batch = torch.empty(len(items))
        tensors.append(weakref.ref(batch))
        try:
            raise ValueError("of a layer")
        except ValueError as error:
            raise PluginFailed("a plugin failed") from error

    errors = Recovery(never).each(WORK, run, [1, 2])
    assert len(errors) == 2
    assert len(tensors) == 3
    assert not [each for each in tensors if each() is not None]


@dataclass
class Device:
    """Runs up to `fits` rows at once; raises for culprits and, however few rows there are, for items too large."""

    fits: int = 1000
    culprits: frozenset[int] | set[int] = frozenset()
    too_large: frozenset[int] | set[int] = frozenset()
    memory_first: bool = True
    lost_at: int | None = None  # the call with which the device is lost
    calls: list[int] = field(default_factory=list)  # how many rows each had
    failed: int = 0

    def run(self, items: Sequence[int]) -> list[int]:
        self.calls.append(len(items))
        self.failed += 1
        if self.lost_at is not None and len(self.calls) > self.lost_at:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        short = len(items) > self.fits or bool(self.too_large & set(items))
        wrong = bool(self.culprits & set(items))
        if short and (self.memory_first or not wrong):
            raise torch.OutOfMemoryError("CUDA out of memory")
        if wrong:
            raise ValueError("a plugin's own")
        self.failed -= 1
        return [-item for item in items]

    def expected(self, item: int) -> object:
        """An item's result, or the type of its error."""
        first, second = (self.too_large, OutOfMemory), (self.culprits, PluginFailed)
        order = (first, second) if self.memory_first else (second, first)
        return next((error for found, error in order if item in found), -item)


DEVICES = st.builds(Device, st.integers(1, 24), ITEMS, ITEMS, st.booleans())


def never() -> bool:
    """There is nothing to free."""
    return False


def kinds(outcomes: Sequence[object]) -> list[object]:
    """The outcomes, with the types of errors in their place."""
    return [type(each) if isinstance(each, Exception) else each for each in outcomes]


@given(DEVICES, COUNTS, st.integers(1, 30), st.booleans())
def test_each_item_gets_its_own_outcome_in_order(device: Device, count: int, most: int, freed: bool) -> None:
    outcomes = Recovery(lambda: freed).each(WORK, device.run, range(count), most)
    assert kinds(outcomes) == [device.expected(item) for item in range(count)]


@given(DEVICES, st.integers(0, 3), COUNTS)
def test_an_error_of_the_domain_stays_itself(device: Device, culprit: int, count: int) -> None:
    refusal = InvalidRequest(message="a plugin's refusal")
    device.culprits = device.too_large = frozenset()

    def run(items: Sequence[int]) -> list[int]:
        if culprit in items:
            raise refusal
        return device.run(items)

    outcomes = Recovery(never).each(WORK, run, range(count))
    assert outcomes == [refusal if item == culprit else -item for item in range(count)]


@given(DEVICES, COUNTS, st.integers(1, 30), st.integers(0, 30))
def test_no_call_is_larger_than_the_limits(device: Device, count: int, most: int, learnt: int) -> None:
    recovery = Recovery(never)
    if learnt:
        recovery.limits.lower(WORK, learnt)
    recovery.each(WORK, device.run, range(count), most)
    assert max(device.calls, default=0) <= min(most, learnt or most)


@given(DEVICES, COUNTS)
def test_nothing_is_run_for_no_items(device: Device, count: int) -> None:
    recovery = Recovery(never)
    recovery.limits.lower(WORK, count)
    assert recovery.each(WORK, device.run, []) == []
    assert device.calls == []


@given(ITEMS, st.integers(1, 24))
def test_culprits_are_found_by_bisection(culprits: set[int], count: int) -> None:
    device = Device(culprits=culprits & set(range(count)))
    Recovery(never).each(WORK, device.run, range(count))
    levels = (count - 1).bit_length()
    assert len(device.calls) <= 1 + 2 * len(device.culprits) * levels


@given(ITEMS, st.integers(1, 24))
def test_what_fits_nowhere_is_found_by_halving(too_large: set[int], count: int) -> None:
    device = Device(too_large=too_large & set(range(count)))
    Recovery(never).each(WORK, device.run, range(count))
    levels = (count - 1).bit_length()
    assert len(device.calls) <= 1 + 2 * len(device.too_large) * (levels + 1)


@given(DEVICES, st.integers(1, 24), st.data())
def test_nothing_is_run_on_a_lost_device(device: Device, count: int, data: st.DataObject) -> None:
    healthy = Device(device.fits, device.culprits, device.too_large, device.memory_first)
    Recovery(never).each(WORK, healthy.run, range(count))
    device.lost_at = data.draw(st.integers(0, len(healthy.calls) - 1))
    with pytest.raises(DeviceLost):
        Recovery(never).each(WORK, device.run, range(count))
    assert device.calls == healthy.calls[: device.lost_at + 1]


# --------------------------------------------------------------------------------------------------------- relieving


@dataclass
class Relief:
    """Frees so many times, then no more."""

    times: int
    asked: int = 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked <= self.times


@given(st.integers(1, 24), ITEMS, COUNTS, st.integers(0, 3))
def test_relief_is_asked_for_until_nothing_is_freed(fits: int, too_large: set[int], count: int, times: int) -> None:
    """Once for each item that does not fit alone, as long as that helps."""
    device, relief = Device(fits, too_large=too_large & set(range(count))), Relief(times)
    Recovery(relief).each(WORK, device.run, range(count))
    assert relief.asked == min(len(device.too_large), times + 1)


def test_relief_is_asked_for_once_in_a_bisected_batch() -> None:
    device, relief = Device(culprits={0}, too_large={1, 3}, memory_first=False), Relief(0)
    assert kinds(Recovery(relief).each(WORK, device.run, range(4))) == [PluginFailed, OutOfMemory, -2, OutOfMemory]
    assert relief.asked == 1


@given(DEVICES, COUNTS)
def test_relief_is_not_asked_for_where_that_is_not_wanted(device: Device, count: int) -> None:
    relief = Relief(1000)
    outcomes = Recovery(relief).each(WORK, device.run, range(count), relieve=False)
    assert kinds(outcomes) == [device.expected(item) for item in range(count)]
    assert relief.asked == 0


@given(st.integers(1, 24), COUNTS)
def test_relief_is_not_asked_for_where_parts_fit(fits: int, count: int) -> None:
    relief = Relief(1000)
    Recovery(relief).each(WORK, Device(fits).run, range(count))
    assert relief.asked == 0


@given(st.integers(1, 24), st.integers(1, 24))
def test_after_relief_as_many_run_as_then_fit(count: int, fits: int) -> None:
    device = Device(0)

    def relieve() -> bool:
        device.fits = fits
        return True

    recovery = Recovery(relieve)
    recovery.limits.lower(WORK, 1)
    recovery.limits.exclude("previews")
    assert recovery.each(WORK, device.run, range(count)) == [-item for item in range(count)]
    assert recovery.limits.of("previews", count) == count
    assert max(device.calls) >= (min(fits, count - 1) + 1) // 2


# ------------------------------------------------------------------------------------------------------------ limits


@given(st.integers(1, 24), st.integers(1, 24))
def test_a_limit_that_was_learnt_is_kept_to(fits: int, count: int) -> None:
    device, recovery = Device(fits), Recovery(never)
    recovery.each(WORK, device.run, range(count))
    failed, limit = device.failed, recovery.limits.of(WORK, count)
    assert (min(fits, count) + 1) // 2 <= limit <= fits or limit == count
    for _ in range(PATIENCE - 1):
        device.calls.clear()
        recovery.each(WORK, device.run, range(count))
        assert max(device.calls) <= limit
    assert device.failed == failed


@given(st.integers(1, 24), st.integers(1, 24))
def test_a_limit_is_forgotten(fits: int, count: int) -> None:
    device, recovery = Device(fits), Recovery(never)
    for _ in range(2):
        device.calls.clear()
        recovery.each(WORK, device.run, range(count))
        assert device.calls[0] == count
        recovery.limits.forget()
        assert recovery.limits.of(WORK, count) == count


@given(st.integers(1, 24), st.integers(1, 24), st.data())
def test_nothing_is_learnt_where_something_fits_nowhere(fits: int, count: int, data: st.DataObject) -> None:
    too_large = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
    recovery = Recovery(never)
    recovery.each(WORK, Device(fits, too_large=too_large).run, range(count))
    assert recovery.limits.of(WORK, count) == count


@given(st.integers(1, 24), st.integers(1, 24))
def test_a_limit_is_that_of_one_kind_of_work(fits: int, count: int) -> None:
    recovery = Recovery(never)
    recovery.each(WORK, Device(fits).run, range(count))
    assert recovery.limits.of("decode", count) == count


def test_excluded_work_is_not_run_until_patience_is_out() -> None:
    device, recovery = Device(), Recovery(never)
    recovery.limits.exclude(WORK)
    recovery.limits.exclude(WORK)  # which says nothing new
    for _ in range(PATIENCE):
        assert kinds(recovery.each(WORK, device.run, range(3))) == [OutOfMemory] * 3
    assert device.calls == []
    assert recovery.each(WORK, device.run, range(3)) == [0, -1, -2]
    assert device.calls == [1, 1, 1]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 40))
def test_a_limit_holds_for_any_number_asked_for(rows: int, most: int, passed: int) -> None:
    limits = RowLimits()
    limits.record_success(WORK, passed)
    assert limits.of(WORK, most) == most  # nothing is known yet
    assert limits.below(WORK, most) == most // 2
    limits.lower(WORK, rows)
    assert limits.of(WORK, most) == min(rows, most)
    assert limits.below(WORK, most) == (max(rows, most // 2) if rows < most else most // 2)


@given(st.integers(1, 40), st.integers(0, 3))
def test_patience_doubles_each_time_that_more_does_not_fit(rows: int, times: int) -> None:
    limits = RowLimits()
    for _ in range(times):
        limits.lower(WORK, rows)
    limits.lower(WORK, rows)
    for _ in range(PATIENCE * 2**times - 1):
        limits.record_success(WORK, rows)
        limits.record_success(WORK, (rows - 1) // 2)  # too small to count
    assert limits.of(WORK, 100) == rows
    limits.record_success(WORK, rows)
    assert limits.of(WORK, 100) == 2 * rows


# -------------------------------------------------------------------------------------------------------------- once


def raising(*errors: Exception | None) -> Callable[[], str]:
    """Work that fails like this, one attempt after the other; None is a success."""
    left = list(errors)

    def run() -> str:
        if (error := left.pop(0)) is not None:
            raise error
        return "done"

    return run


SHORT = torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("freed", [False, True])
def test_one_piece_of_work_is_tried_twice_where_memory_is_short(freed: bool) -> None:
    relief = Relief(int(freed))
    recovery = Recovery(relief)
    recovery.limits.lower(WORK, 1)
    assert recovery.once(raising(SHORT, None)) == "done"
    assert relief.asked == 1
    assert recovery.limits.of(WORK, 4) == (4 if freed else 1)


def test_one_piece_of_work_is_not_tried_a_third_time() -> None:
    relief = Relief(0)
    with pytest.raises(torch.OutOfMemoryError):
        Recovery(relief).once(raising(SHORT, SHORT))
    assert relief.asked == 1


@pytest.mark.parametrize("error", [ValueError("a plugin's own"), RuntimeError("CUDA error"), InvalidRequest()])
def test_one_piece_of_work_that_fails_otherwise_is_not_tried_again(error: Exception) -> None:
    relief = Relief(0)
    with pytest.raises(type(error)) as caught:
        Recovery(relief).once(raising(error))
    assert caught.value is error
    assert relief.asked == 0
