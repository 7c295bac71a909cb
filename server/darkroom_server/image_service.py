"""ImageService: makes pictures, and streams what happens to each job."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from typing import Any, TypeAlias

from darkroom.v1 import events_pb2, image_service_pb2, image_service_pb2_grpc
from darkroom_plugins.errors import (
    Cancelled,
    DarkroomError,
    DeviceLost,
    InvalidRequest,
    NotFound,
    QueueFull,
    RequestIdInUse,
    ShuttingDown,
    Violation,
)
from darkroom_plugins.sample import Picture
from darkroom_server import responses
from darkroom_server.calls import answers_errors, not_there_yet
from darkroom_server.catalog import Catalog
from darkroom_server.engine import Engine
from darkroom_server.events import Accepted, Ended, Event, ImageDecoded, PreviewMade, Queued, StepDone
from darkroom_server.jobs import Job
from darkroom_server.pictures import encode_picture, encode_preview
from darkroom_server.plan import plan
from darkroom_server.sampling import known
from darkroom_server.validate import check_generate

Context: TypeAlias = Any  # grpc.aio.ServicerContext, which has no types


class ImageService(image_service_pb2_grpc.ImageServiceServicer):
    """Each RPC that makes pictures has one shape: check, submit, stream. It keeps the active jobs by request_id."""

    def __init__(self, catalog: Catalog, engine: Engine, encoders: Executor) -> None:
        self._catalog = catalog
        self._engine = engine
        self._encoders = encoders
        self._jobs: dict[str, Job] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False

    @answers_errors
    async def Generate(self, request: image_service_pb2.GenerateRequest, context: Context) -> None:
        checked = check_generate(request, self._catalog)
        # In the pool: some schedulers take a tenth of a second to set up.
        job = self._submit(Job(checked, await self._in_pool(plan, checked, self._catalog)))
        try:
            async for event in self._events(job):
                await context.write(image_service_pb2.GenerateResponse(event=event))
        finally:
            self._release(job)

    @answers_errors
    async def Cancel(
        self, request: image_service_pb2.CancelRequest, context: Context
    ) -> image_service_pb2.CancelResponse:
        if not request.request_id:
            raise InvalidRequest([Violation("request_id", "must be set")])
        job = self._jobs.get(request.request_id)
        if job is None:
            violation = Violation("request_id", f"there is no active job {request.request_id[:128]!r}")
            raise NotFound("request", [violation])
        self._engine.cancel(job)
        job.mailbox.close(Cancelled("the job was cancelled"))
        return image_service_pb2.CancelResponse(cancelled=True)

    Edit = not_there_yet("Edit is")
    Watch = not_there_yet("Watch is")
    Preprocess = not_there_yet("Preprocess is")

    @property
    def active_jobs(self) -> int:
        """How many jobs have not ended."""
        return len(self._jobs)

    async def drain(self, seconds: float) -> None:
        """Refuse new jobs, and wait for those that run, at most so long."""
        self._draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            for job in self._jobs.values():
                job.mailbox.close(ShuttingDown("the server stopped before the job was done"))

    def lose(self, error: DarkroomError) -> None:
        """End every job with this error, and take no more."""
        self._draining = True
        for job in self._jobs.values():
            job.mailbox.close(error)

    def _submit(self, job: Job) -> Job:
        if self._draining:
            raise ShuttingDown("the server is shutting down")
        if job.request.request_id in self._jobs:
            raise RequestIdInUse(f"request_id {job.request.request_id!r} is in use by an active job")
        if sum(other.started is None for other in self._jobs.values()) >= self._catalog.limits.max_queued_jobs:
            raise QueueFull(f"{self._catalog.limits.max_queued_jobs} jobs are waiting already")
        self._jobs[job.request.request_id] = job
        self._idle.clear()
        job.mailbox.put(Accepted())
        self._engine.submit(job)
        return job

    def _release(self, job: Job) -> None:
        """However the stream ended: the job does not go on without it."""
        self._engine.cancel(job)
        del self._jobs[job.request.request_id]
        if not self._jobs:
            self._idle.set()

    async def _events(self, job: Job) -> AsyncIterator[events_pb2.JobEvent]:
        """The job's events as messages, until it has ended well; else raises its error."""
        sequence, encode_seconds = 0, 0.0
        while True:
            event = await job.mailbox.get()
            if isinstance(event, Ended) and event.error is not None:
                raise event.error
            began = time.monotonic()
            fields = await self._fields(job, event, encode_seconds)
            encode_seconds += time.monotonic() - began if isinstance(event, ImageDecoded) else 0.0
            for each in fields:
                sequence += 1
                yield events_pb2.JobEvent(request_id=job.request.request_id, sequence=sequence, **each)
            if isinstance(event, Ended):
                return

    async def _fields(self, job: Job, event: Event, encode_seconds: float) -> list[dict[str, Any]]:
        """The messages of one event; pictures are encoded in the pool, and only those that the stream gets to."""
        match event:
            case Accepted():
                return [{"accepted": responses.accepted(job)}]
            case Queued():
                return [{"queued": responses.queued(event)}]
            case StepDone():
                return [{"step": responses.step(event)}]
            case PreviewMade():
                data, size = await self._in_pool(encode_preview, event.pixels, job.request.preview)
                return [{"preview": responses.preview(event, job, data, size)}]
            case ImageDecoded():
                chunk_bytes = self._catalog.limits.chunk_bytes
                return await self._in_pool(_finish, job, event, chunk_bytes)  # type: ignore[no-any-return]
            case Ended():
                return [{"completed": responses.completed(event, job, encode_seconds)}]

    async def _in_pool(self, function: Any, *arguments: Any) -> Any:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._encoders, function, *arguments)
        except DeviceLost as error:
            self._engine.lose(error)
            raise


def _finish(job: Job, event: ImageDecoded, chunk_bytes: int) -> list[dict[str, Any]]:
    """The messages of a finished picture; a finisher that fails, or makes nonsense, fails the job."""
    picture = Picture(event.pixels, seed=job.request.seed + event.image_index)
    try:
        for finisher, parameters in job.plan.finishers:
            picture = finisher.finish(picture, job.request, parameters)
        data = encode_picture(picture, job.request.output)
        return list(responses.image(event.image_index, picture, data, job, chunk_bytes))
    except Exception as error:
        raise known(error) from None
