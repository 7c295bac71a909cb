"""Mailboxes: the queue of events between a job and its stream."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar

from darkroom_server.jobs.events import Ended, Event, Forwarded, ImageDecoded, PreviewMade, Queued
from darkroom_server.models.residency import Loading

T = TypeVar("T")


class Mailbox:
    """Queue of one job's events, for the event loop's thread. It never blocks the writer:

    - Events keep their order, and none is lost but as follows.
    - Previews are coalesced to the newest per image.
    - Queue positions and loading progress are coalesced to the newest of each.
    """

    def __init__(self, on_picture: Callable[[], None] = lambda: None) -> None:
        """`on_picture` is called after a finished picture was put."""
        self._on_picture = on_picture
        self._events: deque[tuple[int, Event]] = deque()
        self._newest: dict[Hashable, tuple[int, Event]] = {}
        self._filled = asyncio.Event()
        self._count = 0
        self._ended = False
        self._error: Exception | None = None  # with which it was ended from outside
        self._breaking_off: asyncio.Future[None] | None = None  # of `unless_ended`
        self.dropped_previews = 0  # replaced by newer ones
        self.unread_bytes = 0  # of finished pictures, 8 bits a channel

    def put(self, event: Event) -> None:
        """Add an event; events after `Ended` are dropped."""
        if self._ended:
            return
        self._count += 1
        self.unread_bytes += _picture_bytes(event)
        if (key := _key(event)) is not None:
            self.dropped_previews += _is_preview(event) and key in self._newest
            self._newest[key] = (self._count, event)
        else:
            self._events.append((self._count, event))
        self._ended = isinstance(event, Ended)
        self._filled.set()
        if _picture_bytes(event):
            self._on_picture()

    @property
    def ended(self) -> bool:
        """Whether `Ended` was put."""
        return self._ended

    @property
    def at_end(self) -> bool:
        """Whether the next event is the last."""
        return self._ended and len(self._events) == 1 and not self._newest

    def close(self, error: Exception) -> bool:
        """End with this error; unread events are dropped. Returns False if it has ended already."""
        if self._ended:
            return False
        self.drop_unread(error)
        return True

    def drop_unread(self, error: Exception) -> None:
        """End with this error in place of all unread events, even if it has ended."""
        self._events.clear()
        self._newest.clear()
        self.unread_bytes, self._ended = 0, False
        self.put(Ended(error))
        self._error = error
        if self._breaking_off is not None and not self._breaking_off.done():
            self._breaking_off.set_result(None)

    async def unless_ended(self, work: Awaitable[T]) -> T:
        """What the work of the job's reader returns: a thread that hangs does not keep it from the job's end.

        :raises Exception: the error with which the job is ended before
        """
        doing = asyncio.ensure_future(work)
        self._breaking_off = asyncio.get_running_loop().create_future()
        try:
            if self._error is None:
                waits: set[asyncio.Future[Any]] = {doing, self._breaking_off}
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if self._error is not None and not doing.done():
                raise self._error
            return doing.result()
        finally:
            self._breaking_off = None
            doing.cancel()

    async def get(self) -> tuple[int, Event]:
        """The oldest unread event with its number, from 1, in the order in which events were made: coalesced ones leave
        gaps. Waits for one."""
        while not self._events and not self._newest:
            self._filled.clear()
            await self._filled.wait()
        oldest = min(self._newest, key=lambda key: self._newest[key][0], default=None)
        if oldest is None or (self._events and self._events[0][0] < self._newest[oldest][0]):
            number, event = self._events.popleft()
            self.unread_bytes -= _picture_bytes(event)
            return number, event
        return self._newest.pop(oldest)


def _key(event: Event) -> Hashable:
    """What the newest of is enough for its reader; None: it is not to be lost."""
    if isinstance(event, Forwarded):
        return event.key
    replaceable = isinstance(event, PreviewMade | Queued | Loading)
    return (type(event).__name__, getattr(event, "image_index", 0)) if replaceable else None


def _is_preview(event: Event) -> bool:
    return event.preview if isinstance(event, Forwarded) else isinstance(event, PreviewMade)


def _picture_bytes(event: Event) -> int:
    if isinstance(event, Forwarded):
        return event.picture_bytes
    return event.picture.nbytes if isinstance(event, ImageDecoded) else 0
