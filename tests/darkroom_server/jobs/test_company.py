"""Jobs at work: together, or one alone."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from darkroom_server.jobs.company import Company
from darkroom_server.jobs.job import Job


async def turn_of_loop() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Workplace:
    """Jobs by name, and who has been let in."""

    def __init__(self) -> None:
        self.company = Company()
        self.jobs = {name: Job(name, "", 0.0, 0) for name in "abcdef"}
        self.let_in: list[str] = []
        self.gates = {name: asyncio.Event() for name in "abcdef"}
        self.tasks: list[asyncio.Task[None]] = []

    async def enter(self, names: str) -> None:
        for name in names:
            self.tasks.append(asyncio.create_task(self._enter(name)))
        await turn_of_loop()

    async def alone(self, name: str) -> None:
        self.tasks.append(asyncio.create_task(self._alone(name)))
        await turn_of_loop()

    async def leave(self, names: str) -> None:
        for name in names:
            self.company.leave(self.jobs[name])
        await turn_of_loop()

    async def end(self, name: str) -> None:
        self.gates[name].set()
        await turn_of_loop()

    async def _enter(self, name: str) -> None:
        await self.company.enter(self.jobs[name])
        self.let_in.append(name)

    async def _alone(self, name: str) -> None:
        async with self.company.without_others(self.jobs[name]):
            await self.company.enter(self.jobs[name])
            self.let_in.append(name)
            await self.gates[name].wait()


def at_work(check: Callable[[Workplace], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    async def run() -> None:
        place = Workplace()
        await check(place)
        await asyncio.wait_for(asyncio.gather(*place.tasks), 10)

    return lambda: asyncio.run(run())


@at_work
async def test_one_alone_waits_for_others_and_others_for_it(place: Workplace) -> None:
    await place.enter("ab")
    await place.alone("c")
    await place.enter("d")
    assert place.let_in == ["a", "b"]
    await place.leave("a")
    assert place.let_in == ["a", "b"]
    await place.leave("bb")
    assert place.let_in == ["a", "b", "c"]
    await place.leave("c")  # the engine has done with it, but it has not ended
    assert place.let_in == ["a", "b", "c"]
    await place.end("c")
    assert place.let_in == ["a", "b", "c", "d"]


@at_work
async def test_those_that_are_to_be_alone_go_first_one_by_one(place: Workplace) -> None:
    await place.alone("a")
    await place.enter("b")
    await place.alone("c")
    assert place.let_in == ["a"]
    await place.end("a")
    assert place.let_in == ["a", "c"]
    await place.end("c")
    assert place.let_in == ["a", "c", "b"]


@at_work
async def test_who_leaves_while_it_waits_keeps_nobody(place: Workplace) -> None:
    await place.enter("a")
    await place.alone("b")
    await place.enter("c")
    await place.leave("b")
    await place.end("b")
    assert set(place.let_in) == {"a", "b", "c"}
    await place.alone("d")
    await place.enter("e")
    await place.leave("e")
    await place.leave("ac")
    assert place.let_in[-1] == "d"
    await place.end("d")
