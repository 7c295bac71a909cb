"""The trace of an application that traces with OpenTelemetry, from its span to those of a real server."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from darkroom_client import AsyncClient, Client
from tests.collector import PHASES, Collector, collecting
from tests.support import RunningServer


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with pytest.MonkeyPatch.context() as environment, collecting() as collector:
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        yield collector


@pytest.fixture(scope="module")
def traced(collector: Collector, tiny_model: Path) -> Iterator[RunningServer]:
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], traces=collector.address) as server:
        yield server


@pytest.fixture
def own() -> tuple[Any, InMemorySpanExporter]:
    """An application's tracer, and its spans."""
    provider, spans = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return provider.get_tracer("application"), spans


def ids(span: Any) -> tuple[str, str]:
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"


def test_a_job_is_a_child_of_the_current_span(
    traced: RunningServer, collector: Collector, own: tuple[Any, InMemorySpanExporter]
) -> None:
    tracer, spans = own
    with Client(traced.address) as client, tracer.start_as_current_span("gallery"):
        client.generate(request_id="blocking", num_inference_steps=2).image()
    job, (span,) = collector.job("blocking"), spans.get_finished_spans()
    assert (job.span.trace_id.hex(), job.span.parent_span_id.hex()) == ids(span)
    assert [each.name for each in collector.phases(job)] == PHASES


async def generate(address: str, tracer: Any) -> None:
    async with AsyncClient(address) as client:
        with tracer.start_as_current_span("gallery"):
            stream = client.generate(request_id="asyncio", num_inference_steps=2)
        await stream.image()  # beside the span


def test_the_span_of_a_job_is_that_of_its_call(
    traced: RunningServer, collector: Collector, own: tuple[Any, InMemorySpanExporter]
) -> None:
    tracer, spans = own
    asyncio.run(generate(traced.address, tracer))
    job, (span,) = collector.job("asyncio"), spans.get_finished_spans()
    assert (job.span.trace_id.hex(), job.span.parent_span_id.hex()) == ids(span)


def test_a_job_without_a_span_begins_a_trace(traced: RunningServer, collector: Collector) -> None:
    with Client(traced.address) as client:
        client.generate(request_id="alone", num_inference_steps=1).image()
    assert not collector.job("alone").span.parent_span_id
