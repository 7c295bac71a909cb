"""The events of one job on their way to the stream that reads them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable

from darkroom_server.jobs.events import Ended, Event, PreviewMade, Queued
from darkroom_server.models.residency import Loading


class Mailbox:
    """Keeps every event in order, but of previews only the newest of each image, and of positions in the queue and of
    what is being loaded the newest: a slow reader loses those and nothing else, and holds up nobody. For the event
    loop's thread."""

    def __init__(self) -> None:
        self._events: deque[tuple[int, Event]] = deque()
        self._newest: dict[Hashable, tuple[int, Event]] = {}
        self._filled = asyncio.Event()
        self._count = 0
        self._ended = False

    def put(self, event: Event) -> None:
        """Add an event; what comes after the end is dropped."""
        if self._ended:
            return
        self._count += 1
        if isinstance(event, PreviewMade | Queued | Loading):
            slot = (type(event).__name__, getattr(event, "image_index", 0))
            self._newest[slot] = (self._count, event)
        else:
            self._events.append((self._count, event))
        self._ended = isinstance(event, Ended)
        self._filled.set()

    def close(self, error: Exception) -> bool:
        """End now, with this error: what waits unread is dropped. False when it has ended already."""
        if self._ended:
            return False
        self._events.clear()
        self._newest.clear()
        self.put(Ended(error))
        return True

    async def get(self) -> Event:
        """The oldest event that waits."""
        while not self._events and not self._newest:
            self._filled.clear()
            await self._filled.wait()
        oldest = min(self._newest, key=lambda slot: self._newest[slot][0], default=None)
        if oldest is None or (self._events and self._events[0][0] < self._newest[oldest][0]):
            return self._events.popleft()[1]
        return self._newest.pop(oldest)[1]
