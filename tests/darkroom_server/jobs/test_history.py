"""Histories alone: what watchers see, however they come and go."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any

import pytest

from darkroom.v1.events_pb2 import JobEvent
from darkroom_server.api.keeper import RUN_SEQUENCES
from darkroom_server.errors import OutOfMemory
from darkroom_server.jobs.history import History
from tests.killable import many
from tests.watching import Watched, check, check_lives

Event = tuple[str, int]  # kind and number


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


async def everything(history: History[Event], after: int = 0) -> list[tuple[int, Event]]:
    return [each async for each in history.watch(after)]


def test_events_come_in_order_from_anywhere() -> None:
    async def test() -> None:
        history: History[Event] = History()
        for sequence in (1, 2, 5):
            history.append(sequence, ("step", sequence), 10)
        history.end()
        assert [sequence for sequence, _ in await everything(history)] == [1, 2, 5]
        assert [sequence for sequence, _ in await everything(history, after=2)] == [5]
        assert [sequence for sequence, _ in await everything(history, after=3)] == [5]
        assert await everything(history, after=9) == []
        assert (history.size, history.last) == (30, 5)

    run(test)


def test_the_newest_of_a_key_takes_the_place_of_the_one_before() -> None:
    async def test() -> None:
        history: History[Event] = History()
        for sequence in range(1, 9):
            preview = sequence % 2 == 0
            history.append(sequence, ("preview" if preview else "step", sequence), 10, "preview" if preview else None)
        history.end()
        assert [sequence for sequence, _ in await everything(history)] == [1, 3, 5, 7, 8]
        assert history.newest("preview") == ("preview", 8)
        assert history.size == 50  # of what it holds

    run(test)


def test_the_end_wakes_those_who_wait_and_gives_its_error() -> None:
    async def test() -> None:
        history: History[Event] = History()
        waiting = [asyncio.create_task(everything(history)) for _ in range(3)]
        await asyncio.sleep(0)
        history.append(1, ("step", 1), 1)
        history.end(OutOfMemory("too little"))
        for each in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(each, OutOfMemory)

    run(test)


EVENTS = int(many("EVENTS", 3_000))


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
def test_many_watchers_of_events(seed: int) -> None:
    """They leave, come back and dawdle: the checker of Watch's guarantees finds nothing."""
    run(lambda: watched_by_many(random.Random(seed), EVENTS, watchers=30 if EVENTS < 10_000 else 100))


async def watched_by_many(chance: random.Random, events: int, watchers: int) -> None:
    history: History[Event] = History()
    made: list[Watched] = []
    seen: list[list[list[Watched]]] = [[] for _ in range(watchers)]
    readers = [asyncio.create_task(_watch(history, each, random.Random(chance.random()))) for each in seen]
    sequence = 0
    for number in range(events):
        sequence += chance.choice((1, 1, 1, 2, 50))
        key = chance.choice((None, "preview-0", "preview-1", "queued"))
        made.append(Watched(sequence, (key or "step", number), key))
        history.append(sequence, (key or "step", number), 1, key)
        if chance.random() < 0.3:
            await asyncio.sleep(0)
    history.end()
    await asyncio.gather(*readers)
    check(made, seen)


async def _watch(history: History[Event], seen: list[list[Watched]], chance: random.Random) -> None:
    """Record what each connection read; each begins where the last one broke."""
    after = 0
    while True:
        connection: list[Watched] = []
        seen.append(connection)
        async with aclosing(history.watch(after)) as events:
            async for sequence, event in events:
                after = sequence
                connection.append(Watched(sequence, event, None))
                if chance.random() < 0.02:
                    break  # the connection is lost
                for _ in range(chance.choice((0, 0, 0, 20))):
                    await asyncio.sleep(0)
            else:
                return


def broken(changed: Sequence[int]) -> list[list[list[Watched]]]:
    return [[[Watched(sequence, ("step", sequence), None) for sequence in changed]]]


@pytest.mark.parametrize("changed", [(1, 3), (2, 1, 3), (1, 2, 2, 3), (1, 2)], ids=["lost", "order", "twice", "end"])
def test_the_checker_can_fail(changed: Sequence[int]) -> None:
    made = [Watched(sequence, ("step", sequence), None) for sequence in (1, 2, 3)]
    with pytest.raises(AssertionError):
        check(made, broken(changed))
    check(made, broken((1, 2, 3)))


def lives_of(kinds: str) -> list[JobEvent]:
    """The events of a job of one picture by their first letters; those after `/` are of the next run."""
    bodies: dict[str, dict[str, Any]] = {
        "a": {"accepted": {"seeds": [1]}},
        "1": {"step": {"step": 1}},
        "2": {"step": {"step": 2}},
        "i": {"image": {"image_bytes": b"x", "total_bytes": 1}},
        "c": {"completed": {}},
    }
    runs = [enumerate(run, 1 + number * RUN_SEQUENCES) for number, run in enumerate(kinds.split("/"))]
    return [JobEvent(sequence=sequence, **bodies[kind]) for run in runs for sequence, kind in run]


CASES = "12ic a12c a12i a12iic a11ic a1i2c aa12ic a12icc a1/12i/2c a12ic|a1ic"  # after `|`: what is read again


@pytest.mark.parametrize("case", CASES.split())
def test_the_checker_of_lives_can_fail(case: str) -> None:
    for right in ("a12ic", "a1/12ic", "a12i/c"):
        assert check_lives([lives_of(right)[:1], lives_of(right)[1:]], lives_of(right)).files() == {0: b"x"}
    read, _, again = case.partition("|")
    with pytest.raises(AssertionError):
        check_lives([lives_of(read)], lives_of(again or read))
