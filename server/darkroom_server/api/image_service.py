"""ImageService: submits jobs, and streams their events."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeAlias

from darkroom.v1 import events_pb2, image_service_pb2, image_service_pb2_grpc
from darkroom_plugins.errors import InvalidRequest, UnsupportedCombination, Violation
from darkroom_plugins.quoting import quoted
from darkroom_server.api import messages, quotas
from darkroom_server.api.interceptors import not_there_yet, token_of
from darkroom_server.api.preprocess import preprocess
from darkroom_server.api.validation.request import check_edit, check_generate, is_request_id
from darkroom_server.errors import Cancelled, LoadFailed, NotFound, SlowReader
from darkroom_server.jobs.events import Accepted, ControlMade, Ended, ImageDecoded

if TYPE_CHECKING:
    from darkroom_plugins.errors import DarkroomError
    from darkroom_plugins.request import Request
    from darkroom_server.api.encoding import Encoder
    from darkroom_server.job_manager import JobManager
    from darkroom_server.jobs.job import Job
    from darkroom_server.models.catalog import Catalog

Context: TypeAlias = Any  # grpc.aio.ServicerContext, which has no types


class ImageService(image_service_pb2_grpc.ImageServiceServicer):
    """Generate and Edit share one flow: validate, plan, submit, stream."""

    def __init__(self, catalog: Catalog, jobs: JobManager, encoder: Encoder, slow_reader_seconds: float) -> None:
        self._catalog = catalog
        self._jobs = jobs
        self._encoder = encoder
        self._slow_reader_seconds = slow_reader_seconds

    async def Generate(self, request: image_service_pb2.GenerateRequest, context: Context) -> None:
        await self._serve(request, context, check_generate, image_service_pb2.GenerateResponse)

    async def Edit(self, request: image_service_pb2.EditRequest, context: Context) -> None:
        await self._serve(request, context, check_edit, image_service_pb2.EditResponse)

    async def _serve(self, message: Any, context: Context, check: Any, response: Any) -> None:
        job = self._register(message, context)
        request = None
        try:
            quotas.admit_model(message.parameters.model, self._catalog.default_model)
            request = await self._jobs.read(check, message, self._catalog)
            quotas.admit_pixels(job, request, self._jobs.of_token(job.token))
            await self._jobs.plan(job, request)
            job.mailbox.put(Accepted())
            for made in _control_images(job):
                job.mailbox.put(made)
            self._jobs.submit(job)
            await asyncio.sleep(0)  # a job that need not wait enters the engine before its first event is written
            async for event in self._events(job):
                await self._write(job, context, response(event=event))
        except LoadFailed as error:
            raise (refusal(request, error) if request else error) from None
        finally:
            self._jobs.release(job)

    async def Preprocess(self, request: image_service_pb2.PreprocessRequest, context: Context) -> None:
        job = self._register(request, context)
        try:
            events = await self._jobs.read(preprocess, request, self._catalog)
            events = [{"accepted": {}}, *events, {"completed": messages.took(time.monotonic() - job.arrived)}]
            for sequence, fields in enumerate(events, 1):
                event = events_pb2.JobEvent(request_id=job.request_id, sequence=sequence, **fields)
                await self._write(job, context, image_service_pb2.PreprocessResponse(event=event))
        finally:
            self._jobs.release(job)

    async def Cancel(
        self, request: image_service_pb2.CancelRequest, context: Context
    ) -> image_service_pb2.CancelResponse:
        if not request.request_id:
            raise InvalidRequest([Violation("request_id", "must be set")])
        job = self._jobs.find(token_of(context.invocation_metadata()), request.request_id)
        if job is None:
            violation = Violation("request_id", f"there is no active job {quoted(request.request_id)}")
            raise NotFound("request", [violation])
        cancelled = self._jobs.end(job, Cancelled("the job was cancelled"))
        return image_service_pb2.CancelResponse(cancelled=cancelled)

    Watch = not_there_yet("Watch is")

    async def _write(self, job: Job, context: Context, response: Any) -> None:
        """:raises SlowReader: the client reads nothing for too long"""
        job.writing = time.monotonic()
        try:
            async with asyncio.timeout(self._slow_reader_seconds):
                await context.write(response)
        except TimeoutError:
            raise SlowReader(f"the client read nothing for {self._slow_reader_seconds:g} seconds") from None
        finally:
            job.writing = None

    def _register(self, message: Any, context: Context) -> Job:
        """Admit a job, or refuse it before any work. Fills in a missing request_id.

        A job never has an id that is not allowed: until it is refused for it, with all violations, it has another.
        """
        message.request_id = message.request_id or uuid.uuid4().hex
        request_id = message.request_id if is_request_id(message.request_id) else uuid.uuid4().hex
        token = token_of(context.invocation_metadata())
        quotas.admit_job(self._jobs.of_token(token))
        return self._jobs.register(token, request_id, message.ByteSize())

    async def _events(self, job: Job) -> AsyncIterator[events_pb2.JobEvent]:
        """The job's events as messages, up to `completed`; raises the job's error."""
        chunks, encode_seconds = 0, 0.0
        while True:
            number, event = await job.mailbox.get()
            if isinstance(event, Ended) and event.error is not None:
                raise event.error
            began = time.monotonic()
            fields = await self._encoder.fields(job, event, encode_seconds)
            encode_seconds += time.monotonic() - began if isinstance(event, ImageDecoded) else 0.0
            for chunk, each in enumerate(fields):
                chunks += chunk > 0
                yield events_pb2.JobEvent(request_id=job.request_id, sequence=number + chunks, **each)
            if isinstance(event, Ended):
                return


def _control_images(job: Job) -> list[ControlMade]:
    """The control maps of a planned job with `echo_map`."""
    return [
        ControlMade(index, pixels, control.preprocessor or "")
        for index, (control, pixels) in enumerate(zip(job.request.controls, job.plan.controls, strict=True))
        if control.echo_map
    ]


def refusal(request: Request, error: LoadFailed) -> DarkroomError:
    """The error of a request whose asset fails to load: a violation of the field that names it, if there is one."""
    named = {
        "lora": [(f"loras[{index}].name", lora.name) for index, lora in enumerate(request.loras)],
        "controlnet": [(f"controls[{index}].model", each.model) for index, each in enumerate(request.controls)],
        "embedding": [("prompt", error.key[1])],
    }
    paths = [path for path, name in named.get(error.key[0], ()) if name == error.key[1]]
    return UnsupportedCombination([Violation(f"parameters.{path}", str(error)) for path in paths]) if paths else error
