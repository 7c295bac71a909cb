"""The replies of many calls in one stream from a replica to an edge, in batches: each message of Ray's costs both sides
more than an event itself. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import TypeAlias

from darkroom_server.cluster.wire import LEASE_SECONDS, ReplicaLost, Reply

log = logging.getLogger(__name__)

Batch: TypeAlias = list[tuple[str, Reply | None]]  # replies with their calls' ids, in order; None: the call has ended
Queues: TypeAlias = dict[str, asyncio.Queue[Reply | ReplicaLost | None]]  # by the call's id

GATHER_SECONDS = 0.005  # from one batch to the next, where several calls run: so an event waits no longer than that


class Outbox:
    """The replica's end: replies to the calls of one edge. For the event loop's thread."""

    def __init__(self) -> None:
        self.calls = 0  # that have not ended, or whose replies have not all been taken
        self._batch: Batch = []
        self._changed, self._taken = asyncio.Event(), asyncio.Event()
        self._reader = object()

    async def begin(self, call_id: str, replies: AsyncGenerator[Reply, None]) -> AsyncGenerator[Reply, None]:
        """The first of a call's replies; the others go into batches. Ends once they have been taken, or nobody has for
        a while."""
        self.calls += 1
        try:
            try:
                yield await anext(replies)
                async for reply in replies:
                    self._put(call_id, reply)
            finally:
                self._put(call_id, None)
            with suppress(TimeoutError):
                async with asyncio.timeout(LEASE_SECONDS):
                    await self._taken.wait()
        finally:
            self.calls -= 1
            self._changed.set()

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """What is sent, at once unless something just was, until no call is left. Another reader takes the place of
        this one."""
        self._reader = me = object()
        while self._reader is me:
            self._changed.clear()
            if self._batch:
                batch, self._batch = self._batch, []
                self._taken.set()
                yield batch
                if self.calls > 1:
                    await asyncio.sleep(GATHER_SECONDS)
            elif self.calls:
                await self._changed.wait()
            else:
                return

    def _put(self, call_id: str, reply: Reply | None) -> None:
        self._batch.append((call_id, reply))
        self._taken.clear()
        self._changed.set()


@contextmanager
def expected(queues: Queues, call_id: str) -> Iterator[None]:
    """A context to make a call in: the second reply may come before the first, which goes by another way."""
    queues[call_id] = asyncio.Queue()
    try:
        yield
    finally:
        del queues[call_id]


class Inbox:
    """The edge's end: replies from one replica. For the event loop's thread."""

    def __init__(self, open_batches: Callable[[], AsyncGenerator[Batch, None]], queues: Queues) -> None:
        """`open_batches` opens Outbox.batches, and raises ReplicaLost if the replica is gone; `queues` are those of the
        expected calls, whichever replica they are at."""
        self._open, self._queues = open_batches, queues
        self._calls: set[str] = set()  # that are read, and have not been lost
        self._reading: asyncio.Task[None] | None = None

    async def replies(self, call_id: str) -> AsyncGenerator[Reply, None]:
        """Those of an expected call that the replica has begun. To be closed.

        :raises ReplicaLost: they do not all come
        """
        self._calls.add(call_id)
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        try:
            while (reply := await self._queues[call_id].get()) is not None:
                if isinstance(reply, ReplicaLost):
                    raise reply
                yield reply
        finally:
            self._calls.discard(call_id)

    @property
    def idle(self) -> bool:
        """Whether it reads nothing."""
        return self._reading is None

    def close(self) -> None:
        """Read no more. To be called when no call is left."""
        if self._reading is not None:
            self._reading.cancel()

    async def _read(self) -> None:
        """Read for as long as there are calls."""
        try:
            while self._calls:
                known = list(self._calls)
                async with aclosing(self._open()) as batches:
                    async for batch in batches:
                        for call_id, reply in batch:
                            if (queue := self._queues.get(call_id)) is not None:
                                queue.put_nowait(reply)
                self._lose(known, "the replica has it no longer")  # those that have ended do not hear it
        except ReplicaLost as error:
            self._lose(list(self._calls), str(error))
        except Exception:
            log.exception("replies cannot be read")
            self._lose(list(self._calls), "its replies cannot be read")
        finally:
            self._reading = None

    def _lose(self, call_ids: list[str], why: str) -> None:
        for call_id in call_ids:
            self._calls.discard(call_id)
            if (queue := self._queues.get(call_id)) is not None:
                queue.put_nowait(ReplicaLost(why))
