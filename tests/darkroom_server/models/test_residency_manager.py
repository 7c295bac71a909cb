"""The residency manager alone, with holdings that are nothing but sizes."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import torch

from darkroom_server.errors import LoadFailed, OutOfMemory
from darkroom_server.models.residency import Holding, Key, Report, Residency, ResidencyManager


class Fake(Holding):
    """Notes what is done with it, and on which thread."""

    def __init__(self, name: str, size: int = 1, parks: bool = True, fails: bool = False) -> None:
        super().__init__(("model", name), name, size)
        self.parks, self.fails = parks, fails
        self.value = name
        self.calls: list[str] = []
        self.threads: set[str] = set()
        self.torch_threads: set[int] = set()

    def note(self, call: str) -> None:
        self.calls.append(call)
        self.threads.add(threading.current_thread().name.rpartition("_")[0])
        self.torch_threads.add(torch.get_num_threads())

    def load(self, report: Report) -> None:
        self.note("load")
        if self.fails:
            raise OSError("no such file")

    def park(self) -> None:
        self.note("park")

    def drop(self) -> None:
        self.note("drop")


def run(use: Callable[[ResidencyManager], Awaitable[Any]], *holdings: Fake, **budgets: Any) -> Any:
    """What `use` gives, with a manager of these."""

    async def main() -> Any:
        manager = ResidencyManager({holding.key: holding for holding in holdings}, **budgets)
        try:
            return await asyncio.wait_for(use(manager), 20)
        finally:
            manager.close()

    return asyncio.run(main())


def key(name: str) -> Key:
    return ("model", name)


async def use(manager: ResidencyManager, *names: str) -> dict[tuple[str, str], Any]:
    """Acquire and release."""
    values = await manager.acquire(map(key, names))
    manager.release(map(key, names))
    return values


def test_values_are_what_was_acquired() -> None:
    assert run(lambda manager: use(manager, "a", "b"), Fake("a"), Fake("b"), Fake("c")) == {
        ("model", "a"): "a",
        ("model", "b"): "b",
    }


def test_the_least_recently_used_leaves() -> None:
    a, b, c = Fake("a"), Fake("b"), Fake("c")

    async def three(manager: ResidencyManager) -> None:
        for name in ("a", "b", "a", "c"):
            await use(manager, name)

    run(three, a, b, c, budget=2)
    assert [each.residency for each in (a, b, c)] == [Residency.RESIDENT, Residency.ABSENT, Residency.RESIDENT]


def test_nothing_in_use_leaves() -> None:
    a, b = Fake("a"), Fake("b")

    async def hold(manager: ResidencyManager) -> None:
        await manager.acquire([key("a")])
        waiting = asyncio.create_task(manager.acquire([key("b")]))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        assert manager.waiting == 1
        with pytest.raises(OutOfMemory, match="no room"):
            await manager.acquire([key("b")], wait=False)
        manager.release([key("a")])
        await waiting

    run(hold, a, b, budget=1)
    assert a.calls == ["load", "drop"]


def test_what_is_larger_than_the_budget_is_refused_at_once() -> None:
    with pytest.raises(OutOfMemory, match="budget"):
        run(lambda manager: use(manager, "a", "b"), Fake("a"), Fake("b"), budget=1)


def test_dropping_never_runs_on_the_event_loop() -> None:
    """It collects garbage, which takes long: what was parked longest ago is dropped by the thread that parks."""
    holdings = [Fake(name) for name in "abc"]

    async def turns(manager: ResidencyManager) -> None:
        for name in "abcabc":
            await use(manager, name)

    run(turns, *holdings, budget=1, park_budget=1)
    assert all("drop" in each.calls and "park" in each.calls for each in holdings)
    assert set().union(*(each.threads for each in holdings)) == {"loader", "leaver"}


def test_its_threads_have_no_team() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        a, b = Fake("a"), Fake("b")

        async def turns(manager: ResidencyManager) -> None:
            for name in "aba":
                await use(manager, name)

        run(turns, a, b, budget=1)
        assert a.torch_threads == b.torch_threads == {1}
    finally:
        torch.set_num_threads(before)


def test_what_does_not_load_fails_who_waits_for_it_alone() -> None:
    good, bad = Fake("good"), Fake("bad", fails=True)

    async def both(manager: ResidencyManager) -> None:
        asked = [asyncio.create_task(manager.acquire([key("bad")])) for _ in range(2)]
        other = asyncio.create_task(manager.acquire([key("good")]))
        for each in asked:
            with pytest.raises(LoadFailed, match="bad does not load"):
                await each
        await other
        assert manager.waiting == 0

    run(both, good, bad)
    assert bad.residency is Residency.ABSENT
    assert bad.calls == ["load", "drop"]


def test_who_stops_waiting_holds_nothing() -> None:
    a, b = Fake("a"), Fake("b")

    async def leave(manager: ResidencyManager) -> None:
        await manager.acquire([key("a")])
        waiting = asyncio.create_task(manager.acquire([key("b")]))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert manager.waiting == 0
        manager.release([key("a")])
        await use(manager, "b")

    run(leave, a, b, budget=1)
    assert (a.users, b.users) == (0, 0)


def test_unloading_waits_for_users() -> None:
    a = Fake("a", size=7)

    async def unload(manager: ResidencyManager) -> int:
        await manager.acquire([key("a")])
        leaving = asyncio.create_task(manager.unload(key("a")))
        await asyncio.sleep(0)
        assert a.residency is Residency.RESIDENT
        manager.release([key("a")])
        return await leaving

    assert run(unload, a) == 7
    assert a.residency is Residency.ABSENT


def test_what_parking_takes_in_host_memory_counts() -> None:
    """Pinned memory may be more than that on the device."""
    small, large = Fake("small"), Fake("large")
    large.parked_bytes = 2

    async def leave(manager: ResidencyManager) -> None:
        for name in ("small", "large"):
            await use(manager, name)
        await manager.relieve()

    run(leave, small, large, park_budget=1)
    assert (small.calls, large.calls) == (["load", "park"], ["load", "drop"])
