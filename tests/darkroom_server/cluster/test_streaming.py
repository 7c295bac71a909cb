"""Replies of many calls in one stream: none is lost, doubled or late, whatever comes to an end when."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import pytest

from darkroom_server.cluster.streaming import Batch, Inbox, Outbox, Queues, expected
from darkroom_server.cluster.wire import ReplicaLost, Reply


class Link:
    """An outbox with an inbox, as Ray Serve connects them."""

    def __init__(self) -> None:
        self.queues: Queues = {}
        self.outbox, self.inbox = Outbox(), Inbox(self._batches, self.queues)
        self.batches: list[Batch] = []
        self.lost_after: int | None = None  # batches

    async def _batches(self) -> AsyncGenerator[Batch, None]:
        async with aclosing(self.outbox.batches()) as batches:
            async for batch in batches:
                if len(self.batches) == self.lost_after:
                    raise ReplicaLost("the test ended it")
                self.batches.append(batch)
                yield batch

    async def call(self, call_id: str, replies: AsyncGenerator[Reply, None], slow: bool = False) -> list[Any]:
        """All replies to a call; `slow`: the first one takes longer than the others."""
        with expected(self.queues, call_id):
            begun = self.outbox.begin(call_id, replies)
            found: list[Any] = [await anext(begun)]
            rest = asyncio.create_task(drained(begun))
            if slow:
                await turns_of_the_loop()
            async with aclosing(self.inbox.replies(call_id)) as others:
                async for reply in others:
                    found.append(reply)
            await rest
            return found


async def drained(replies: AsyncGenerator[Reply, None]) -> None:
    async for _ in replies:
        raise AssertionError("a second reply beside the stream")


async def replies(name: str, ticks: Sequence[asyncio.Event] = (), count: int = 20) -> AsyncGenerator[Reply, None]:
    """The replica's name, then one message at each tick."""
    yield "replica"
    for number in range(len(ticks) or count):
        if ticks:
            await ticks[number].wait()
        yield [f"{name} {number}".encode()]


async def turns_of_the_loop() -> None:
    """As many as what is under way needs, without waiting."""
    for _ in range(50):
        await asyncio.sleep(0)


def whole(name: str, count: int = 20) -> list[Any]:
    return ["replica", *([f"{name} {number}".encode()] for number in range(count))]


def test_calls_share_batches_and_each_gets_its_own_replies() -> None:
    async def run() -> None:
        link, names = Link(), [f"call-{number}" for number in range(16)]
        ticks = [asyncio.Event() for _ in range(20)]
        calls = [asyncio.create_task(link.call(name, replies(name, ticks))) for name in names]
        for tick in ticks:  # as steps of one batch
            tick.set()
            await asyncio.sleep(0.01)
        assert await asyncio.gather(*calls) == [whole(name) for name in names]
        assert sum(map(len, link.batches)) == 16 * 21  # with the ends
        assert len(link.batches) <= 16 * 21 / 4
        assert link.outbox.calls == 0

    asyncio.run(run())


def test_the_replies_of_a_lone_call_are_not_gathered() -> None:
    async def run() -> None:
        link, ticks = Link(), [asyncio.Event() for _ in range(5)]
        call = asyncio.create_task(link.call("a", replies("a", ticks)))
        for number, tick in enumerate(ticks):
            tick.set()
            await turns_of_the_loop()
            assert len(link.batches) > number
        assert await call == whole("a", 5)

    asyncio.run(run())


def test_the_stream_ends_with_the_calls_and_begins_with_the_next() -> None:
    async def run() -> None:
        link = Link()
        for name in ("a", "b"):
            assert await link.call(name, replies(name)) == whole(name)
            await turns_of_the_loop()
            assert link.inbox.idle

    asyncio.run(run())


def test_replies_that_come_before_the_first_are_not_lost() -> None:
    async def run() -> None:
        link, ticks = Link(), [asyncio.Event()]
        other = asyncio.create_task(link.call("other", replies("other", ticks)))
        await turns_of_the_loop()
        assert not link.inbox.idle
        call = asyncio.create_task(link.call("a", replies("a"), slow=True))
        await turns_of_the_loop()
        ticks[0].set()
        assert await call == whole("a")
        assert await other == whole("other", 1)
        assert not link.queues

    asyncio.run(run())


def test_a_lost_stream_loses_its_calls() -> None:
    async def run() -> None:
        link = Link()
        link.lost_after = 2
        ticks = [asyncio.Event() for _ in range(4)]
        calls = [asyncio.create_task(link.call(name, replies(name, ticks))) for name in "ab"]
        for tick in ticks:
            tick.set()
            await asyncio.sleep(0.01)
        for call in calls:
            with pytest.raises(ReplicaLost, match="the test ended it"):
                await call

    asyncio.run(run())


def test_a_call_that_the_replica_has_no_longer_is_lost() -> None:
    async def run() -> None:
        link = Link()
        with expected(link.queues, "unknown"):
            others = link.inbox.replies("unknown")
            with pytest.raises(ReplicaLost, match="no longer"):
                await anext(others)

    asyncio.run(run())


def test_a_call_that_fails_ends_for_its_reader_and_leaves_nothing() -> None:
    async def failing() -> AsyncGenerator[Reply, None]:
        yield "replica"
        yield [b"one"]
        raise asyncio.CancelledError

    async def run() -> None:
        link = Link()
        with expected(link.queues, "a"):
            begun = link.outbox.begin("a", failing())
            assert await anext(begun) == "replica"
            with pytest.raises(asyncio.CancelledError):
                await anext(begun)
            assert [reply async for reply in link.inbox.replies("a")] == [[b"one"]]
        assert link.outbox.calls == 0

    asyncio.run(run())
