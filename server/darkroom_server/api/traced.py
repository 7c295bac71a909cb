"""Spans of jobs, by what their streams say: the same for this process's engine and for those of a cluster."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from darkroom_plugins.errors import DarkroomError, JobFailed
from darkroom_server.api.access import IMAGES, caller
from darkroom_server.api.context import trace_headers
from darkroom_server.api.request_id import is_request_id
from darkroom_server.api.status import code_of, outcome_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from darkroom.v1 import events_pb2
    from darkroom_server.api.backend import Backend
    from darkroom_server.api.context import CallContext
    from darkroom_server.jobs.job import Job
    from darkroom_server.jobs.registry import Registry
    from darkroom_server.observe.traces import JobSpan, Traces


def open_tracing(collector: str | None) -> Tracing | None:
    """What traces jobs; None if nobody asks for that: then nothing of it is imported."""
    if collector is None:
        return None
    from darkroom_server.observe.traces import Traces

    return Tracing(Traces.to(collector))


class Tracing:
    """Makes a span of each job, and of each that is refused before it is one."""

    def __init__(self, traces: Traces) -> None:
        self._traces = traces

    def of(self, backend: Backend) -> Backend:
        """The backend with its jobs traced."""
        return TracedBackend(backend, self._traces)

    def refused(self, rpc: str, request_id: str, context: CallContext, error: DarkroomError) -> None:
        """A call was refused before there was a job."""
        span = _span(rpc, request_id, trace_headers(context), time.monotonic())
        _end(span, error)
        self._traces.add(span)

    async def close(self) -> None:
        """Send what is left, for a moment."""
        await self._traces.close()


class TracedBackend:
    """See Backend."""

    def __init__(self, backend: Backend, traces: Traces) -> None:
        self._backend, self._traces = backend, traces

    @property
    def jobs(self) -> Registry:
        return self._backend.jobs

    def events(
        self, job: Job, rpc: str, message: Any, *, admitted: bool = False
    ) -> AsyncGenerator[list[events_pb2.JobEvent], None]:
        return self._traced(job, rpc, self._backend.events(job, rpc, message, admitted=admitted))

    def preprocess(self, job: Job, message: Any) -> AsyncGenerator[list[events_pb2.JobEvent], None]:
        return self._traced(job, "Preprocess", self._backend.preprocess(job, message))

    async def _traced(
        self, job: Job, rpc: str, events: AsyncGenerator[list[events_pb2.JobEvent], None]
    ) -> AsyncGenerator[list[events_pb2.JobEvent], None]:
        span, error, done = _span(rpc, job.request_id, job.trace, job.arrived), None, False
        try:
            async with aclosing(events):
                async for made in events:
                    for event in made:
                        _note(span, event)
                        done = done or event.HasField("completed")
                    yield made
        except DarkroomError as failure:
            error = failure
            raise
        except (asyncio.CancelledError, GeneratorExit):
            error = None if done else job.break_off
            raise
        except Exception:
            error = JobFailed("the server failed")
            raise
        finally:
            if not done and "darkroom.model" in span.attributes:
                timings = job.timings(time.monotonic())
                _set_phases(span, timings.load, timings.queue, timings.encode_prompt, timings.denoise, timings.decode)
            _end(span, error)
            self._traces.add(span)


def _span(rpc: str, request_id: str, headers: dict[str, str], began: float) -> JobSpan:
    from darkroom_server.observe.traces import JobSpan

    attributes: dict[str, str | int] = {"darkroom.request_id": request_id} if is_request_id(request_id) else {}
    present = caller()
    if present is not None and present.token is not None:
        attributes["darkroom.token"] = present.token.name
    return JobSpan(f"{IMAGES}/{rpc}", headers, began, attributes=attributes)


def _note(span: JobSpan, event: events_pb2.JobEvent) -> None:
    """Note what an event says of its job. Prompts stay where they are."""
    about = span.attributes
    match event.WhichOneof("event"):
        case "accepted" if event.accepted.parameters.model:
            accepted, given = event.accepted, event.accepted.parameters
            about["darkroom.model"], about["darkroom.task"] = given.model, given.task
            about["darkroom.scheduler"], about["darkroom.steps"] = given.scheduler.name, accepted.step_count
            about["darkroom.images"] = len(accepted.seeds)
            if given.width:
                about["darkroom.width"], about["darkroom.height"] = given.width, given.height
        case "step":
            about["darkroom.rows"] = max(about.get("darkroom.rows", 0), event.step.batch_rows)
        case "image":
            about["darkroom.width"], about["darkroom.height"] = event.image.width, event.image.height
        case "completed":
            took = event.completed.timings
            phases = (took.load_seconds, took.queue_seconds, took.encode_prompt_seconds)
            _set_phases(span, *phases, took.denoise_seconds, took.decode_seconds)


def _set_phases(span: JobSpan, load: float, queue: float, encode: float, steps: float, decode: float) -> None:
    """The seconds of each phase, in their order: an engine is told of a job when its model is there."""
    span.phases = {"load": load, "queue": queue, "encode": encode, "steps": steps, "decode": decode}


def _end(span: JobSpan, error: DarkroomError | None) -> None:
    span.ended = time.monotonic()
    if error is not None:
        span.code, span.outcome = code_of(error).name, outcome_of(error)
