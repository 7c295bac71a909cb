"""ImageService: makes pictures, and streams what happens to each job."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

from darkroom.v1 import events_pb2, image_service_pb2, image_service_pb2_grpc
from darkroom_plugins.errors import DarkroomError, InvalidRequest, UnsupportedCombination, Violation
from darkroom_plugins.request import Request
from darkroom_plugins.sample import Picture
from darkroom_server.api import messages
from darkroom_server.api.interceptors import answers_errors, not_there_yet, token_of
from darkroom_server.api.preprocess import preprocess
from darkroom_server.api.validation.request import check_edit, check_generate
from darkroom_server.config.settings import Settings
from darkroom_server.device.threads import without_teams
from darkroom_server.device.transfer import Arriving
from darkroom_server.engine.engine import Engine
from darkroom_server.errors import (
    Cancelled,
    DeviceLost,
    LoadFailed,
    NotFound,
    QueueFull,
    RequestIdInUse,
    ShuttingDown,
    to_domain_error,
)
from darkroom_server.jobs.events import Accepted, ControlMade, Ended, Event, ImageDecoded, PreviewMade, Queued, StepDone
from darkroom_server.jobs.job import Job
from darkroom_server.jobs.planner import control_images, fit, plan
from darkroom_server.models.catalog import Catalog
from darkroom_server.models.residency import Loading
from darkroom_server.pictures.encode import encode_picture, encode_preview
from darkroom_server.schedulers.tables import Tables

Context: TypeAlias = Any  # grpc.aio.ServicerContext, which has no types


class ImageService(image_service_pb2_grpc.ImageServiceServicer):
    """Each RPC that makes pictures has one shape: check, submit, stream. It keeps the active jobs by request_id."""

    def __init__(self, catalog: Catalog, engine: Engine, settings: Settings) -> None:
        self._catalog = catalog
        self._engine = engine
        self._max_waiting_bytes = settings.max_waiting_bytes
        self._encoders = without_teams("encoder", settings.encoder_threads)
        self._readers = without_teams("reader", settings.reader_threads)
        self._planner = without_teams("planner")
        # Who wait for the device, in the order in which it does each kind of work.
        self._arrivals = {kind: ThreadPoolExecutor(1, "arrivals") for kind in (PreviewMade, ImageDecoded)}
        self._jobs: dict[tuple[str, str], Job] = {}  # by token and id
        self._tables = Tables()
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False

    @answers_errors
    async def Generate(self, request: image_service_pb2.GenerateRequest, context: Context) -> None:
        await self._serve(request, context, check_generate, image_service_pb2.GenerateResponse)

    @answers_errors
    async def Edit(self, request: image_service_pb2.EditRequest, context: Context) -> None:
        await self._serve(request, context, check_edit, image_service_pb2.EditResponse)

    async def _serve(self, message: Any, context: Context, check: Any, response: Any) -> None:
        job = self._register(message, token_of(context.invocation_metadata()))
        try:
            await self._prepare(job, check, message)
            job.mailbox.put(Accepted())
            for made in control_images(job):
                job.mailbox.put(made)
            job.waiting = asyncio.create_task(self._submit(job))
            await asyncio.sleep(0)  # what has all it needs is in the engine before its client hears of it
            async for event in self._events(job):
                await context.write(response(event=event))
        except LoadFailed as error:
            raise refusal(job.request, error) from None
        finally:
            self._release(job)

    async def _prepare(self, job: Job, check: Any, message: Any) -> None:
        await self.make_plan(job, check, message)
        job.held_bytes = job.plan.held_bytes
        self._refuse_if_full(besides=job)

    async def make_plan(self, job: Job, check: Any, message: Any) -> None:
        """Fill in a job's request and plan, beside the loop: decoding pictures takes time, and so do some schedulers.

        :raises DarkroomError: the message asks for what cannot be done
        """
        request = await self._run_in(self._readers, check, message, self._catalog)
        fitted = await self._run_in(self._readers, fit, request, self._catalog)
        # The pictures that maps were made of are not needed any more.
        job.request = replace(request, controls=tuple(replace(each, image=None) for each in request.controls))
        job.plan = await self._run_in(self._planner, plan, job.request, fitted, self._catalog)
        if not job.request.deterministic:  # which must not depend on when a table is there
            job.plan.table = self._tables.of(job.plan.scheduler, job.plan.steps.first, job.request.eta)

    async def _submit(self, job: Job) -> None:
        """Give a job to the engine as soon as its model, and what goes with it, is there."""
        began = time.monotonic()
        try:
            await self._catalog.store.acquire(job.plan.needs, job.mailbox.put)
        except Exception as error:
            job.mailbox.close(to_domain_error(error))
            return
        job.acquired, job.load_seconds = job.plan.needs, time.monotonic() - began
        self._engine.submit(job)

    @answers_errors
    async def Preprocess(self, request: image_service_pb2.PreprocessRequest, context: Context) -> None:
        job = self._register(request, token_of(context.invocation_metadata()))
        try:
            events = await self._run_in(self._readers, preprocess, request, self._catalog)
            events = [{"accepted": {}}, *events, {"completed": messages.took(time.monotonic() - job.arrived)}]
            for sequence, fields in enumerate(events, 1):
                event = events_pb2.JobEvent(request_id=job.request_id, sequence=sequence, **fields)
                await context.write(image_service_pb2.PreprocessResponse(event=event))
        finally:
            self._release(job)

    @answers_errors
    async def Cancel(
        self, request: image_service_pb2.CancelRequest, context: Context
    ) -> image_service_pb2.CancelResponse:
        if not request.request_id:
            raise InvalidRequest([Violation("request_id", "must be set")])
        job = self._jobs.get((token_of(context.invocation_metadata()), request.request_id))
        if job is None:
            violation = Violation("request_id", f"there is no active job {request.request_id[:128]!r}")
            raise NotFound("request", [violation])
        cancelled = self._end(job, Cancelled("the job was cancelled"))
        return image_service_pb2.CancelResponse(cancelled=cancelled)

    Watch = not_there_yet("Watch is")

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
            for job in list(self._jobs.values()):
                self._end(job, ShuttingDown("the server stopped before the job was done"))

    def lose(self, error: DarkroomError) -> None:
        """End every job with this error, and take no more."""
        self._draining = True
        for job in list(self._jobs.values()):
            self._end(job, error)

    def close(self) -> None:
        """Let go of the threads; a plugin that hangs in one does not hold up the end."""
        for executor in (self._encoders, self._readers, self._planner, *self._arrivals.values()):
            executor.shutdown(wait=False, cancel_futures=True)
        self._tables.close()

    def _register(self, message: Any, token: str) -> Job:
        """Take a job in, or refuse it before any work. Its message gets an id where it has none.

        :raises ShuttingDown, RequestIdInUse, QueueFull: it is refused
        """
        if self._draining:
            raise ShuttingDown("the server is shutting down")
        message.request_id = message.request_id or uuid.uuid4().hex
        job = Job(message.request_id, token, arrived=time.monotonic(), held_bytes=message.ByteSize())
        if (token, job.request_id) in self._jobs:
            raise RequestIdInUse(f"request_id {job.request_id!r} is in use by an active job")
        self._refuse_if_full(besides=job)
        self._jobs[token, job.request_id] = job
        self._idle.clear()
        return job

    def _refuse_if_full(self, besides: Job) -> None:
        """:raises QueueFull: too many others wait, or there is no room for this one's pictures beside theirs"""
        waiting = [other for other in self._jobs.values() if other.started is None and other is not besides]
        if len(waiting) >= self._catalog.limits.max_queued_jobs:
            raise QueueFull(f"{len(waiting)} jobs are waiting already")
        held = sum(other.held_bytes for other in waiting)
        if waiting and held + besides.held_bytes > self._max_waiting_bytes:
            raise QueueFull(f"the pictures of the jobs that wait take {held // 2**20} MiB already")

    def _end(self, job: Job, error: DarkroomError) -> bool:
        """End a job from outside, at once, even if its stream hangs in a client that does not read; false when it has
        ended already."""
        ended = job.mailbox.close(error)
        self._release(job)
        return ended

    def _release(self, job: Job) -> None:
        """However the stream ended: the job does not go on without it."""
        if job.waiting is not None:
            job.waiting.cancel()
        self._engine.cancel(job, then=partial(self._free, job))
        key = (job.token, job.request_id)
        if self._jobs.get(key) is job:
            del self._jobs[key]
        if not self._jobs:
            self._idle.set()

    def _free(self, job: Job) -> None:
        keys, job.acquired = job.acquired, ()
        if keys:
            self._catalog.store.release(keys)

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
                yield events_pb2.JobEvent(request_id=job.request_id, sequence=sequence, **each)
            if isinstance(event, Ended):
                return

    async def _fields(self, job: Job, event: Event, encode_seconds: float) -> list[dict[str, Any]]:
        """The messages of one event; pictures are encoded in the pool, and only those that the stream gets to."""
        if isinstance(event, PreviewMade | ImageDecoded) and not event.picture.there:
            await self._run_in(self._arrivals[type(event)], _arrived, event.picture)
        match event:
            case Accepted():
                return [{"accepted": messages.accepted(job)}]
            case Queued():
                return [{"queued": messages.queued(event)}]
            case Loading():
                return [{"loading": messages.loading(event)}]
            case ControlMade():
                return await self._run_in(self._encoders, _echo, event, self._catalog.limits.chunk_bytes)  # type: ignore[no-any-return]
            case StepDone():
                return [{"step": messages.step(event)}]
            case PreviewMade():
                return await self._run_in(self._encoders, _show, job, event)  # type: ignore[no-any-return]
            case ImageDecoded():
                chunk_bytes = self._catalog.limits.chunk_bytes
                return await self._run_in(self._encoders, _finish, job, event, chunk_bytes)  # type: ignore[no-any-return]
            case Ended():
                return [{"completed": messages.completed(event, job, encode_seconds)}]

    async def _run_in(self, executor: Executor, function: Any, *arguments: Any) -> Any:
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, function, *arguments)
        except DeviceLost as error:
            self._engine.lose(error)
            raise


def refusal(request: Request, error: LoadFailed) -> DarkroomError:
    """What a request gets that needs what does not load: where it is the request's choice, that says where."""
    named = {
        "lora": [(f"loras[{index}].name", lora.name) for index, lora in enumerate(request.loras)],
        "controlnet": [(f"controls[{index}].model", each.model) for index, each in enumerate(request.controls)],
        "embedding": [("prompt", error.key[1])],
    }
    paths = [path for path, name in named.get(error.key[0], ()) if name == error.key[1]]
    return UnsupportedCombination([Violation(f"parameters.{path}", str(error)) for path in paths]) if paths else error


def _arrived(picture: Arriving) -> None:
    with suppress(Exception):  # who reads it is told
        picture.wait()


def _show(job: Job, event: PreviewMade) -> list[dict[str, Any]]:
    """The message of a preview; none where its decoder made what is no picture."""
    try:
        data, size = encode_preview(event.picture.read(), job.request.preview)
    except Exception as error:
        if isinstance(failure := to_domain_error(error), DeviceLost):
            raise failure from None
        return []
    return [{"preview": messages.preview(event, job, data, size)}]


def _echo(event: ControlMade, chunk_bytes: int) -> list[dict[str, Any]]:
    return list(messages.control_image(event, chunk_bytes))


def _finish(job: Job, event: ImageDecoded, chunk_bytes: int) -> list[dict[str, Any]]:
    """The messages of a finished picture; what is not finite, or a finisher that fails, fails the job."""
    try:
        seed = job.request.seed + event.image_index
        picture = Picture(job.plan.canvas.restore(event.picture.read()), seed, findings=event.findings)
        for finisher, parameters in job.plan.finishers:
            picture = finisher.finish(picture, job.request, parameters)
        data = encode_picture(picture, job.request.output)
        return list(messages.image(event.image_index, picture, data, job, chunk_bytes))
    except Exception as error:
        raise to_domain_error(error) from None
