"""The event stream of a job, for asyncio. The blocking `Stream` wraps it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from darkroom.v1 import events_pb2
from darkroom_client import events
from darkroom_client._assembly import Assembler
from darkroom_client._attempts import StreamCall
from darkroom_client._kept import KeptCall
from darkroom_client._notebook import Notebook
from darkroom_client.errors import Cancelled, DarkroomError


class AsyncStream(AsyncIterator[events.Event]):
    """The event stream of a job.

    Iterate over its events, or wait for the picture::

        async for event in client.generate("a red circle"): ...
        picture = await client.generate("a red circle").image()

    The job starts with the call, before the first read. The server cancels it when the stream is closed or
    garbage-collected, and when the reading task is cancelled. The stream is its own iterator: after a `break` it can be
    read on, and a loop over a stream that nothing else holds ends the job. As the last value of a notebook's cell it
    shows the picture as it develops.
    """

    def __init__(
        self,
        call: StreamCall | KeptCall,
        *,
        request_id: str,
        cancel_job: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self.request_id = request_id
        self.accepted: events.Accepted | None = None  # None until read
        self.completed: events.Completed | None = None  # None until read
        self._pictures: dict[int, events.Image] = {}  # by image index
        self._control_maps: dict[int, events.ControlImage] = {}  # by control index
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._assembler = Assembler()
        self._cancel_job = cancel_job  # for a detached job, which goes on after its stream ends
        self._reading = asyncio.Lock()  # one reader at a time, such as a notebook's drawing beside `image()`
        self._ended = False
        self._cancelled = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> events.Event:
        event = await self.next_event()
        if event is None:
            raise StopAsyncIteration
        return event

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        call = getattr(self, "_call", None)
        if call is not None and not self._ended:
            with suppress(RuntimeError):  # the loop is closed, and with it the call
                self._loop.call_soon_threadsafe(call.cancel)

    @property
    def made(self) -> list[events.Picture]:
        """The control maps and pictures read so far, without previews."""
        return [*self._control_maps.values(), *self._pictures.values()]

    async def image(self) -> events.Image:
        """Waits for the job; returns its picture, or the first of several.

        :raises DarkroomError: the job's error; `Cancelled` if the stream was closed early.
        """
        await self._read_to_end()
        if not self._pictures:
            raise self._missing_picture()
        return self._pictures[min(self._pictures)]

    async def images(self) -> list[events.Image]:
        """Waits for the job; returns its pictures in the order of their image indices.

        :raises DarkroomError: the job's error; `Cancelled` if the stream was closed early.
        """
        await self._read_to_end()
        if not self._pictures or self.completed is None:
            raise self._missing_picture()
        return [self._pictures[index] for index in sorted(self._pictures)]

    async def control_images(self) -> list[events.ControlImage]:
        """Waits for the job; returns its control maps in the order of their control indices.

        :raises DarkroomError: the job's error; `Cancelled` if the stream was closed early.
        """
        await self._read_to_end()
        if self.completed is None:
            raise self._missing_picture()
        return [self._control_maps[index] for index in sorted(self._control_maps)]

    async def cancel(self) -> None:
        """Cancels the job on the server; readers of the stream get `Cancelled`.

        :raises DarkroomError: if the Cancel call for a detached job fails.
        """
        if self._ended:
            return
        self._cancelled = True
        try:
            if self._cancel_job is not None:
                await self._cancel_job()
        finally:
            self.close()

    def close(self) -> None:
        """Ends the stream, and the job unless its disconnect policy is "keep". Idempotent."""
        self._ended = True
        self._call.cancel()

    def hang_up(self) -> None:
        """Cancels the call while its client closes; readers of the stream get `Cancelled`."""
        self._call.cancel()

    def _ipython_display_(self) -> None:
        self._showing = asyncio.ensure_future(self._show(Notebook()))

    async def _show(self, notebook: Notebook) -> None:
        try:
            for picture in self.made:
                notebook.show(picture)
            async for event in self:
                notebook.show(event)
        except DarkroomError as error:
            notebook.fail(error)

    async def next_event(self) -> events.Event | None:
        """The next event, or None at the end.

        :raises DarkroomError: the job's error.
        """
        while not self._ended:
            async with self._reading:
                message = await self._read() if not self._ended else None
            event = self._assembler.feed(message) if message is not None else None
            if event is not None:
                self._record(event)
                return event
        if self._cancelled:
            raise Cancelled(f"the job {self.request_id} was cancelled")
        return None

    async def _read(self) -> events_pb2.JobEvent | None:
        """The next message, or None at the end."""
        try:
            response = await self._call.read()
        except asyncio.CancelledError:
            self.close()
            raise
        except DarkroomError:
            was_closed, self._ended = self._ended, True
            if was_closed:
                return None
            raise
        if response is None:
            self._on_end()
            return None
        event: events_pb2.JobEvent = response.event
        return event

    def _on_end(self) -> None:
        self._ended = True
        if self.completed is None:
            raise DarkroomError(f"the server ended the stream of job {self.request_id} before it was completed")

    def _record(self, event: events.Event) -> None:
        match event:
            case events.Accepted():
                self.accepted = event
            case events.Image():
                self._pictures[event.image_index] = event
            case events.ControlImage():
                self._control_maps[event.control_index] = event
            case events.Completed():
                self.completed = event

    async def _read_to_end(self) -> None:
        while await self.next_event() is not None:
            pass

    def _missing_picture(self) -> DarkroomError:
        if self.completed is not None:
            return DarkroomError(f"the job {self.request_id} made no picture")
        return Cancelled(f"the stream of job {self.request_id} was closed before its picture was done")
