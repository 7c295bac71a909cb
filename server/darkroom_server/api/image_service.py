"""ImageService: submits jobs, and streams their events."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import aclosing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from darkroom.v1 import image_service_pb2, image_service_pb2_grpc, parameters_pb2
from darkroom_plugins.errors import DarkroomError, InvalidRequest, Violation
from darkroom_plugins.quoting import quoted
from darkroom_server.api import quotas
from darkroom_server.api.access import owner
from darkroom_server.api.context import trace_headers
from darkroom_server.api.keeper import no_such_job
from darkroom_server.api.request_id import is_request_id
from darkroom_server.errors import Cancelled, RequestIdInUse, SlowReader

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from darkroom.v1 import events_pb2
    from darkroom_server.api.backend import Backend
    from darkroom_server.api.context import CallContext
    from darkroom_server.api.job_list import JobList
    from darkroom_server.api.keeper import Keeper
    from darkroom_server.api.traced import Tracing
    from darkroom_server.jobs.job import Job
    from darkroom_server.jobs.kept import KeptJob

Context: TypeAlias = "CallContext"


class ImageService(image_service_pb2_grpc.ImageServiceServicer):
    """Generate and Edit share one flow: validate, plan, submit, stream. A kept job runs beside its streams, which watch
    it."""

    def __init__(
        self,
        backend: Backend,
        keeper: Keeper,
        job_list: JobList,
        slow_reader_seconds: float,
        tracing: Tracing | None = None,
    ) -> None:
        self._backend = backend
        self._jobs = backend.jobs
        self._keeper = keeper
        self._list = job_list
        self._slow_reader_seconds = slow_reader_seconds
        self._tracing = tracing

    async def Generate(self, request: image_service_pb2.GenerateRequest, context: Context) -> None:
        await self._serve("Generate", request, context, image_service_pb2.GenerateResponse)

    async def Edit(self, request: image_service_pb2.EditRequest, context: Context) -> None:
        await self._serve("Edit", request, context, image_service_pb2.EditResponse)

    async def _serve(self, rpc: str, message: Any, context: Context, response: Any) -> None:
        message.request_id = message.request_id or uuid.uuid4().hex
        if message.disconnect_policy == parameters_pb2.DISCONNECT_POLICY_KEEP:
            register = partial(self._register, context)
            with self._tracing_refusals(rpc, message, context):
                kept = await self._keeper.attach(rpc, message, register, owner(), context.time_remaining())
            await self._follow(kept, 0, context, response)
            return
        with self._tracing_refusals(rpc, message, context):
            job = self._register(context, message)
        await self._stream(job, self._backend.events(job, rpc, message), context, response)

    async def _stream(
        self, job: Job, events: AsyncGenerator[list[events_pb2.JobEvent], None], context: Context, response: Any
    ) -> None:
        try:
            async with aclosing(events):
                async for made in events:
                    for event in made:
                        await self._write(context, response(event=event), job)
        except DarkroomError as error:
            job.failure = job.failure or error
            raise
        finally:
            self._jobs.release(job)

    async def Watch(self, request: image_service_pb2.WatchRequest, context: Context) -> None:
        _require_id(request)
        if request.after_sequence < 0:
            raise InvalidRequest([Violation("after_sequence", f"must be 0 or more, not {request.after_sequence}")])
        kept = await self._keeper.found(owner(), request.request_id)
        if kept is None:
            raise no_such_job(request.request_id)
        await self._follow(kept, request.after_sequence, context, image_service_pb2.WatchResponse)

    async def _follow(self, kept: KeptJob, after: int, context: Context, response: Any) -> None:
        history = await self._keeper.history(kept)
        async with aclosing(history.watch(after)) as events:
            async for _, event in events:
                await self._write(context, response(event=event))

    async def Preprocess(self, request: image_service_pb2.PreprocessRequest, context: Context) -> None:
        request.request_id = request.request_id or uuid.uuid4().hex
        with self._tracing_refusals("Preprocess", request, context):
            job = self._register(context, request)
        await self._stream(job, self._backend.preprocess(job, request), context, image_service_pb2.PreprocessResponse)

    async def Cancel(
        self, request: image_service_pb2.CancelRequest, context: Context
    ) -> image_service_pb2.CancelResponse:
        _require_id(request)
        job = self._jobs.find(owner(), request.request_id)
        if job is not None:
            cancelled = self._jobs.end(job, Cancelled("the job was cancelled"))
        elif (kept := await self._keeper.found(owner(), request.request_id)) is not None:
            cancelled = await self._keeper.cancel(kept)
        else:
            raise no_such_job(request.request_id, "active or kept")
        return image_service_pb2.CancelResponse(cancelled=cancelled)

    async def ListJobs(
        self, request: image_service_pb2.ListJobsRequest, context: Context
    ) -> image_service_pb2.ListJobsResponse:
        return self._list.page(owner(), request.page_size, request.page_token, request.active_only)

    async def GetJob(
        self, request: image_service_pb2.GetJobRequest, context: Context
    ) -> image_service_pb2.GetJobResponse:
        _require_id(request)
        if self._jobs.find(owner(), request.request_id) is None:
            await self._keeper.found(owner(), request.request_id)
        return await self._list.job(owner(), request.request_id)

    async def _write(self, context: Context, response: Any, job: Job | None = None) -> None:
        """Write a message; for a job that is not kept, while others may be told that it waits for its reader.

        :raises SlowReader: the client reads nothing for too long
        """
        if job is not None:
            job.writing = time.monotonic()
        try:
            async with asyncio.timeout(self._slow_reader_seconds):
                await context.write(response)
        except TimeoutError:
            slow = SlowReader(f"the client read nothing for {self._slow_reader_seconds:g} seconds")
            if job is not None:
                job.failure = slow
            raise slow from None
        finally:
            if job is not None:
                job.writing = None

    @contextmanager
    def _tracing_refusals(self, rpc: str, message: Any, context: Context) -> Iterator[None]:
        """Around what refuses a request before there is a job."""
        try:
            yield
        except DarkroomError as error:
            if self._tracing is not None:
                self._tracing.refused(rpc, message.request_id, context, error)
            raise

    def _register(self, context: Context, message: Any) -> Job:
        """Admit a job, or refuse it before any work.

        A job never has an id that is not allowed: until it is refused for it, with all violations, it has another.
        """
        token, left = owner(), context.time_remaining()
        request_id = message.request_id if is_request_id(message.request_id) else uuid.uuid4().hex
        if self._keeper.find(token, request_id) is not None:
            raise RequestIdInUse(f"request_id {quoted(request_id)} is that of a kept job")
        quotas.admit_job(partial(self._jobs.of_token, token))
        job = self._jobs.register(
            token,
            request_id,
            message.ByteSize(),
            client=token or context.peer(),
            priority=quotas.admit_priority(message),
            deadline=time.monotonic() + left if left is not None else None,
        )
        job.trace = trace_headers(context)
        return job


def _require_id(request: Any) -> None:
    """:raises InvalidRequest: the request names no job"""
    if not request.request_id:
        raise InvalidRequest([Violation("request_id", "must be set")])
