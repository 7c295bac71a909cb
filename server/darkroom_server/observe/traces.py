"""Spans for OpenTelemetry, sent to a collector by OTLP over gRPC. Imported only by servers that send them.

The spans of a job are made after its end, from the times that are known by then. A thread of the SDK sends them:
nothing waits for the collector, and what it does not take is dropped.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from darkroom_plugins.version import VERSION

CLOSE_SECONDS = 2.0  # for what is not sent yet when the server stops
# What OpenTelemetry calls errors of a server, rather than of its client; of gRPC's codes.
ERRORS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")


@dataclass(slots=True)
class JobSpan:
    """What a job's span says. Times are those of `time.monotonic`."""

    method: str  # as ``darkroom.v1.ImageService/Generate``
    parent: Mapping[str, str]  # W3C's trace headers of its call
    began: float
    ended: float = 0.0
    code: str = "OK"  # gRPC's
    outcome: str = "OK"  # the API's reason, else the code
    attributes: dict[str, str | int] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)  # seconds, one after the other


class Traces:
    """Sends spans until it is closed. What is not said here follows OpenTelemetry's own environment variables."""

    def __init__(self, exporter: SpanExporter) -> None:
        names = Resource.create({"service.name": "darkroom", "service.version": VERSION})
        resource = names.merge(OTELResourceDetector().detect())  # OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)  # which would wait
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("darkroom", VERSION)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to(cls, collector: str) -> Traces:
        """To the collector at ``http://HOST:PORT``, or https."""
        return cls(OTLPSpanExporter(endpoint=collector))

    def add(self, job: JobSpan) -> None:
        """Send a job's span, and those of its phases."""
        epoch = time.time_ns() - time.monotonic_ns()
        end = epoch + int(job.ended * 1e9)
        span = self._tracer.start_span(
            job.method,
            self._propagator.extract(job.parent),
            SpanKind.SERVER,
            {"rpc.response.status_code": job.code, "darkroom.outcome": job.outcome, **job.attributes},
            start_time=epoch + int(job.began * 1e9),
        )
        if job.code in ERRORS:
            span.set_attribute("error.type", job.outcome)
            span.set_status(Status(StatusCode.ERROR))
        inner, at = set_span_in_context(span), job.began
        for phase, seconds in job.phases.items():
            until = min(job.ended, at + seconds)
            if until > at:
                child = self._tracer.start_span(phase, inner, start_time=epoch + int(at * 1e9))
                child.end(epoch + int(until * 1e9))
                at = until
        span.end(end)

    async def close(self) -> None:
        """Send what is left, within CLOSE_SECONDS."""
        ending = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        ending.start()
        await asyncio.to_thread(ending.join, CLOSE_SECONDS)
