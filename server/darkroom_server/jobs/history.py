"""Histories: what a kept job has sent, for any number of watchers. For the event loop's thread."""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import AsyncGenerator, Hashable, Iterator
from typing import Generic, TypeVar

from darkroom_plugins.errors import DarkroomError

T = TypeVar("T")


class History(Generic[T]):
    """The events of one job by their sequence, which grows from event to event.

    Watchers hold nothing but the sequence that they have read: what they cost does not depend on how slow they are. An
    event with a key takes the place of the last one with the same key, and whoever has not read that one by then does
    not see it; all others stay for as long as the history does.
    """

    def __init__(self) -> None:
        self._sequences: list[int] = []
        self._events: dict[int, tuple[T, int]] = {}  # by sequence, with its size
        self._newest: dict[Hashable, int] = {}  # sequence by key
        self._waiting: set[asyncio.Future[None]] = set()  # watchers that have read all
        self.ended = False
        self.error: DarkroomError | None = None  # that it ended with; None: it succeeded, or has not ended
        self.size = 0  # bytes

    @property
    def last(self) -> int:
        """The newest event's sequence; 0 of an empty history."""
        return self._sequences[-1] if self._sequences else 0

    def append(self, sequence: int, event: T, size: int, key: Hashable = None) -> None:
        """Add an event of `size` bytes, newer than all others."""
        assert sequence > self.last, f"event {sequence} after {self.last}"
        if key is not None:
            self._drop(self._newest.get(key))
            self._newest[key] = sequence
        self._sequences.append(sequence)
        self._events[sequence] = event, size
        self.size += size
        self._wake()

    def end(self, error: DarkroomError | None = None) -> None:
        """No more events come."""
        self.ended, self.error = True, error
        self._wake()

    def __iter__(self) -> Iterator[T]:
        """The events, in order."""
        return iter([self._events[sequence][0] for sequence in self._sequences])

    def newest(self, key: Hashable) -> T | None:
        """The last event with this key."""
        sequence = self._newest.get(key)
        return self._events[sequence][0] if sequence is not None else None

    async def watch(self, after: int) -> AsyncGenerator[tuple[int, T], None]:
        """The events after this sequence, in order, up to the end; waits for those to come.

        :raises DarkroomError: the error that the job ended with
        """
        while True:
            place = bisect_right(self._sequences, after)
            if place < len(self._sequences):
                after = self._sequences[place]
                yield after, self._events[after][0]
            elif self.ended:
                break
            else:
                await self._news()
        if self.error is not None:
            raise self.error

    def _drop(self, sequence: int | None) -> None:
        if sequence is not None:
            del self._sequences[bisect_left(self._sequences, sequence)]
            self.size -= self._events.pop(sequence)[1]

    async def _news(self) -> None:
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        try:
            await waiting
        finally:
            self._waiting.discard(waiting)

    def _wake(self) -> None:
        """Wake those that wait now; whoever comes later waits for the next event."""
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        self._waiting.clear()
