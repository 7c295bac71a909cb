"""The events of one job on their way to the stream that reads them."""

from __future__ import annotations

import asyncio
from collections import deque

from darkroom_server.events import Ended, Event, PreviewMade


class Mailbox:
    """Keeps every event in order, but of previews only the newest of each image: a slow reader loses previews and
    nothing else, and holds up nobody. Used on the event loop's thread only."""

    def __init__(self) -> None:
        self._events: deque[tuple[int, Event]] = deque()
        self._previews: dict[int, tuple[int, PreviewMade]] = {}
        self._filled = asyncio.Event()
        self._count = 0
        self._ended = False

    def put(self, event: Event) -> None:
        """Add an event; what comes after the end is dropped."""
        if self._ended:
            return
        self._count += 1
        if isinstance(event, PreviewMade):
            self._previews[event.image_index] = (self._count, event)
        else:
            self._events.append((self._count, event))
        self._ended = isinstance(event, Ended)
        self._filled.set()

    def close(self, error: Exception) -> None:
        """End now, with this error: what waits unread is dropped."""
        if not self._ended:
            self._events.clear()
            self._previews.clear()
            self.put(Ended(error))

    async def get(self) -> Event:
        """The oldest event that waits."""
        while not self._events and not self._previews:
            self._filled.clear()
            await self._filled.wait()
        image = min(self._previews, key=lambda i: self._previews[i][0], default=None)
        if image is None or (self._events and self._events[0][0] < self._previews[image][0]):
            return self._events.popleft()[1]
        return self._previews.pop(image)[1]
