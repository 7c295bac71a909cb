"""Events to protobuf messages. Pictures are encoded lazily, as a stream reaches them, in a thread pool."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from darkroom.v1 import events_pb2
from darkroom_plugins import calls
from darkroom_plugins.sample import Picture
from darkroom_server.api import messages
from darkroom_server.device.threads import single_threaded_pool
from darkroom_server.errors import DeviceLost, to_domain_error
from darkroom_server.jobs.events import (
    Accepted,
    ControlMade,
    Ended,
    Event,
    Forwarded,
    ImageDecoded,
    PreviewMade,
    Queued,
    Started,
    StepDone,
)
from darkroom_server.models.residency import Loading
from darkroom_server.pictures.encode import encode_picture, encode_preview, encode_thumbnail

if TYPE_CHECKING:
    from darkroom_server.device.transfer import PendingImage
    from darkroom_server.jobs.job import Job


class Encoder:
    """Converts job events to the fields of `JobEvent` messages."""

    def __init__(self, threads: int, chunk_bytes: int, on_lost: Callable[[DeviceLost], None]) -> None:
        """`on_lost` is called if reading a picture reveals a lost device."""
        self._pool = single_threaded_pool("encoder", threads)
        # One waiter thread per kind of result; results of one kind complete in order.
        self._arrivals = {kind: ThreadPoolExecutor(1, "arrivals") for kind in (PreviewMade, ImageDecoded)}
        self._chunk_bytes = chunk_bytes
        self._on_lost = on_lost

    def close(self) -> None:
        """Shut the pools down without waiting: a hanging plugin must not block the exit."""
        for pool in (self._pool, *self._arrivals.values()):
            pool.shutdown(wait=False, cancel_futures=True)

    async def events(self, job: Job) -> AsyncIterator[tuple[Event, list[events_pb2.JobEvent]]]:
        """A job's events, each with its messages, up to `completed`.

        :raises DarkroomError: the job's error
        """
        chunks, encode_seconds = 0, 0.0
        while True:
            number, event = await job.mailbox.get()
            if isinstance(event, Ended) and event.error is not None:
                raise event.error
            began = time.monotonic()
            fields = await self.fields(job, event, encode_seconds)
            # While others of its images are denoised, the seconds are counted there.
            if isinstance(event, ImageDecoded) and job.mailbox.ended:
                encode_seconds += time.monotonic() - began
            first = job.base + number + chunks
            chunks += max(0, len(fields) - 1)
            yield (
                event,
                [
                    events_pb2.JobEvent(request_id=job.request_id, sequence=n, **each)
                    for n, each in enumerate(fields, first)
                ],
            )
            if isinstance(event, Ended):
                return

    async def fields(self, job: Job, event: Event, encode_seconds: float) -> list[dict[str, Any]]:
        """The messages of one event."""
        if isinstance(event, PreviewMade | ImageDecoded) and not event.picture.ready:
            await self._run(job, self._arrivals[type(event)], _wait, event.picture)
        match event:
            case Started() | Forwarded():  # the latter is of other processes' jobs
                return []
            case Accepted():
                return [{"accepted": messages.accepted(event, job)}]
            case Queued():
                return [{"queued": messages.queued(event)}]
            case Loading():
                return [{"loading": messages.loading(event)}]
            case ControlMade():
                return await self._run(job, self._pool, _control, event, self._chunk_bytes)
            case StepDone():
                return [{"step": messages.step(event)}]
            case PreviewMade():
                return await self._run(job, self._pool, _preview, job, event)
            case ImageDecoded():
                return await self._run(job, self._pool, _image, job, event, self._chunk_bytes)
            case Ended():
                return [{"completed": messages.completed(event, job, encode_seconds, time.monotonic())}]

    async def thumbnail(self, data: bytes, edge: int) -> bytes:
        """A small JPEG of a picture that this server made."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, encode_thumbnail, data, edge)

    async def _run(
        self, job: Job, pool: Executor, function: Callable[..., Any], *arguments: Any
    ) -> list[dict[str, Any]]:
        making = asyncio.get_running_loop().run_in_executor(pool, function, *arguments)
        try:
            made: list[dict[str, Any]] = await job.mailbox.unless_ended(making)
            return made
        except DeviceLost as error:
            if not making.cancelled():  # else the job was ended with it
                self._on_lost(error)
            raise


def _wait(picture: PendingImage) -> None:
    with suppress(Exception):  # `read` raises it again
        picture.wait()


def _control(event: ControlMade, chunk_bytes: int) -> list[dict[str, Any]]:
    return list(messages.control_image(event, chunk_bytes))


def _preview(job: Job, event: PreviewMade) -> list[dict[str, Any]]:
    """The message of a preview; none if its values are not finite, for instance."""
    try:
        data, size = encode_preview(event.picture.read(), job.request.preview)
    except BaseException as error:
        if isinstance(failure := to_domain_error(error), DeviceLost):
            raise failure from None
        return []
    return [{"preview": messages.preview(event, job, data, size)}]


def _image(job: Job, event: ImageDecoded, chunk_bytes: int) -> list[dict[str, Any]]:
    """The messages of a finished picture. Non-finite values or a failing finisher fail the job."""
    try:
        seed = job.request.seed + event.image_index
        picture = Picture(job.plan.last.canvas.restore(event.picture.read()), seed, findings=event.findings)
        for finisher in job.plan.finishers:
            picture = calls.finish(finisher, picture, job.request)
        data, warnings = encode_picture(picture, job.request.output)
        job.warnings += (each for each in warnings if each not in job.warnings)
        return list(messages.image(event.image_index, picture, data, job, chunk_bytes))
    except BaseException as error:
        raise to_domain_error(error) from None
