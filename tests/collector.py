"""A collector of traces: takes spans by OTLP over gRPC, as those do that operators run."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

PHASES = ["load", "queue", "encode", "steps", "decode"]


@dataclass
class Traced:
    """A span, and what it belongs to."""

    span: Span
    resource: dict[str, Any]

    @property
    def name(self) -> str:
        return self.span.name

    @property
    def attributes(self) -> dict[str, Any]:
        return _values(self.span.attributes)

    @property
    def seconds(self) -> float:
        return (self.span.end_time_unix_nano - self.span.start_time_unix_nano) / 1e9


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """What servers have sent."""

    def __init__(self) -> None:
        self.address = ""
        self._spans: list[Traced] = []
        self._change = threading.Condition()

    def Export(self, request: Any, context: Any) -> Any:
        with self._change:
            for group in request.resource_spans:
                resource = _values(group.resource.attributes)
                self._spans += [Traced(span, resource) for scope in group.scope_spans for span in scope.spans]
            self._change.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def job(self, request_id: str) -> Traced:
        """The span of a job; waits for it."""
        return self.find(lambda each: each.attributes.get("darkroom.request_id") == request_id)

    def find(self, wanted: Any) -> Traced:
        """The span that is so; waits for it."""
        with self._change:
            assert self._change.wait_for(lambda: any(map(wanted, self._spans)), 30), [s.name for s in self._spans]
            (found,) = filter(wanted, self._spans)
        return found

    def phases(self, job: Traced) -> list[Traced]:
        """The spans within a job's, by time. They have been sent before it."""
        inner = [each for each in self._spans if each.span.parent_span_id == job.span.span_id]
        assert all(each.span.trace_id == job.span.trace_id for each in inner)
        return sorted(inner, key=lambda each: each.span.start_time_unix_nano)


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(0).wait()
