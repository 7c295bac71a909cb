"""The stream of a job's events, and everything that it does; the sync stream is the same object behind a thread."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from darkroom.v1 import events_pb2
from darkroom_client import events
from darkroom_client._assembly import Assembler
from darkroom_client._status import to_exception
from darkroom_client.errors import Cancelled, DarkroomError


class AsyncStream:
    """A job's events as they happen.

    Iterate over it, or ask for the picture at once::

        async for event in client.generate("a red circle"): ...
        picture = await client.generate("a red circle").image()

    The job runs from the moment of the call. It is stopped on the server when the stream is closed, when its loop is
    left early (by `break` or an exception), when the task that reads it is cancelled, and when the stream is dropped.
    To go on reading after a `break`, iterate over a name of your own: `events = aiter(stream)`.
    """

    def __init__(
        self,
        call: Any,
        *,
        request_id: str,
        address: str,
        stop_job: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self.request_id = request_id
        self.accepted: events.Accepted | None = None  # None: not yet
        self.completed: events.Completed | None = None  # None: not yet
        self._pictures: dict[int, events.Image] = {}  # by image index
        self._maps: dict[int, events.ControlImage] = {}  # by control index
        self._call = call
        self._messages = aiter(call)
        self._loop = asyncio.get_running_loop()
        self._address = address
        self._assembler = Assembler()
        self._stop_job = stop_job  # for jobs that outlive their stream
        self._connected = False
        self._ended = False
        self._cancelled = False

    async def __aiter__(self) -> AsyncIterator[events.Event]:
        try:
            while (event := await self.next_event()) is not None:
                yield event
        finally:
            self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        call = getattr(self, "_call", None)
        if call is not None and not self._ended:
            with suppress(RuntimeError):  # the loop is closed, and the call ended with it
                self._loop.call_soon_threadsafe(call.cancel)

    async def image(self) -> events.Image:
        """Waits for the job and returns its picture; of several, the first.

        :raises DarkroomError: the job's own error, or `Cancelled` when the stream was closed before.
        """
        await self._finish()
        if not self._pictures:
            raise self._without_picture()
        return self._pictures[min(self._pictures)]

    async def images(self) -> list[events.Image]:
        """Waits for the job and returns all its pictures, by image index.

        :raises DarkroomError: the job's own error, or `Cancelled` when the stream was closed before.
        """
        await self._finish()
        if not self._pictures or self.completed is None:
            raise self._without_picture()
        return [self._pictures[index] for index in sorted(self._pictures)]

    async def control_images(self) -> list[events.ControlImage]:
        """Waits for the job and returns the control maps that it sent, by control index.

        :raises DarkroomError: the job's own error, or `Cancelled` when the stream was closed before.
        """
        await self._finish()
        if self.completed is None:
            raise self._without_picture()
        return [self._maps[index] for index in sorted(self._maps)]

    async def cancel(self) -> None:
        """Stops the job on the server; whoever reads the stream gets `Cancelled`.

        :raises DarkroomError: when a job that outlives its stream cannot be stopped.
        """
        if self._ended:
            return
        self._cancelled = True
        try:
            if self._stop_job is not None:
                await self._stop_job()
        finally:
            self.close()

    def close(self) -> None:
        """Ends the stream, and with it the job unless its disconnect policy is "keep". May be called again."""
        self._ended = True
        self._call.cancel()

    def hang_up(self) -> None:
        """Ends the call from below, as its client is being closed; whoever reads the stream gets `Cancelled`."""
        self._call.cancel()

    async def next_event(self) -> events.Event | None:
        """The next event, or None at the end.

        :raises DarkroomError: the job's own error.
        """
        while not self._ended:
            message = await self._read()
            event = self._assembler.feed(message) if message is not None else None
            if event is not None:
                self._keep(event)
                return event
        if self._cancelled:
            raise Cancelled(f"the job {self.request_id} was cancelled")
        return None

    async def _read(self) -> events_pb2.JobEvent | None:
        """The next message, or None when there are no more."""
        try:
            response = await anext(self._messages, None)
        except asyncio.CancelledError:
            self._on_cancelled()
            return None
        except grpc.aio.AioRpcError as error:
            self._ended = True
            raise to_exception(error, self._address, connected=self._connected) from error
        self._connected = True
        if response is None:
            self._end_of_stream()
            return None
        event: events_pb2.JobEvent = response.event
        return event

    def _end_of_stream(self) -> None:
        self._ended = True
        if self.completed is None:
            raise DarkroomError(f"the server ended the stream of job {self.request_id} before it was completed")

    def _on_cancelled(self) -> None:
        """Tells a reading task's cancellation, which goes on, from the call's, which is this stream's own affair."""
        stopped = self._ended
        self.close()
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError
        if not stopped:
            raise Cancelled(f"the job {self.request_id} was cancelled: its client was closed")

    def _keep(self, event: events.Event) -> None:
        match event:
            case events.Accepted():
                self.accepted = event
            case events.Image():
                self._pictures[event.image_index] = event
            case events.ControlImage():
                self._maps[event.control_index] = event
            case events.Completed():
                self.completed = event

    async def _finish(self) -> None:
        while await self.next_event() is not None:
            pass

    def _without_picture(self) -> DarkroomError:
        if self.completed is not None:
            return DarkroomError(f"the job {self.request_id} made no picture")
        return Cancelled(f"the stream of job {self.request_id} was closed before its picture was done")
