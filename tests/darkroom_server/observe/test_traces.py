"""Spans, as a collector gets them from a real server."""

import asyncio
import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import httpx2
import numpy as np
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from darkroom.v1 import parameters_pb2
from darkroom.v1.image_service_pb2 import CancelRequest, PreprocessRequest
from darkroom_plugins import Finisher, hookimpl
from darkroom_server.observe.traces import JobSpan, Traces
from tests import noise_family
from tests.collector import PHASES, Collector, Traced, collecting
from tests.darkroom_server.cluster.conftest import ReplicasHere
from tests.darkroom_server.web.http import envelope
from tests.failing import FailingServer
from tests.noise_family import save_noise
from tests.support import RunningServer, Stream, edit_request, generate_request, png, preview, refused, settle
from tests.test_repository import loaded_by

KEEP = parameters_pb2.DISCONNECT_POLICY_KEEP
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
ME = ("authorization", "Bearer t0ken")
LONG = {"prompt": "secret words", "num_inference_steps": 400}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with pytest.MonkeyPatch.context() as environment, collecting() as collector:
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")  # milliseconds
        environment.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=tests")
        yield collector


@pytest.fixture(scope="module")
def traced(collector: Collector, tiny_model: Path) -> Iterator[RunningServer]:
    tokens = [
        {"name": "me", "role": "operator", "sha256": hashlib.sha256(b"t0ken").hexdigest()},
        {"name": "one", "sha256": hashlib.sha256(b"one").hexdigest(), "max_jobs": 1},
    ]
    models = [{"name": "tiny", "path": tiny_model}]
    with RunningServer(models=models, traces=collector.address, tokens=tokens, http="127.0.0.1:0") as server:
        yield server


def start(server: RunningServer, *, trace: bool = False, timeout: float = 60, **parameters: Any) -> Stream:
    metadata = [ME, *([("traceparent", TRACEPARENT), ("tracestate", "vendor=7")] if trace else [])]
    return Stream(server.images.Generate(generate_request(**parameters), metadata=metadata, timeout=timeout))


def names(spans: list[Traced]) -> list[str]:
    return [each.name for each in spans]


def test_a_jobs_spans(traced: RunningServer, collector: Collector) -> None:
    parameters = {"prompt": "secret words", "num_inference_steps": 3, "num_images": 2, "scheduler": "ddim"}
    stream = start(traced, request_id="whole", **parameters).read()
    job = collector.job("whole")
    assert job.name == "darkroom.v1.ImageService/Generate"
    assert job.span.kind == Span.SPAN_KIND_SERVER
    assert not job.span.parent_span_id
    assert job.span.status.code == Status.STATUS_CODE_UNSET
    assert job.attributes == {
        "darkroom.request_id": "whole",
        "darkroom.token": "me",
        "darkroom.model": "tiny",
        "darkroom.task": "txt2img",
        "darkroom.scheduler": "ddim",
        "darkroom.steps": 3,
        "darkroom.images": 2,
        "darkroom.width": 32,
        "darkroom.height": 32,
        "darkroom.rows": 4,
        "darkroom.outcome": "OK",
        "rpc.response.status_code": "OK",
    }
    phases = collector.phases(job)
    assert names(phases) == PHASES
    (completed,) = stream.of("completed")
    took = completed.timings
    assert {each.name: pytest.approx(each.seconds, abs=1e-5) for each in phases} == {
        "load": took.load_seconds,
        "queue": took.queue_seconds,
        "encode": took.encode_prompt_seconds,
        "steps": took.denoise_seconds,
        "decode": took.decode_seconds,
    }
    assert job.seconds >= took.total_seconds - 1e-5
    for one, other in pairwise(phases):
        assert one.span.end_time_unix_nano == other.span.start_time_unix_nano
    assert phases[0].span.start_time_unix_nano == job.span.start_time_unix_nano
    assert b"secret words" not in job.span.SerializeToString()


def chained(job: Traced, phases: list[Traced]) -> bool:
    """Whether the phases follow each other from the beginning of the job, and end within it."""
    ends = [job.span.start_time_unix_nano, *(each.span.end_time_unix_nano for each in phases)]
    return [each.span.start_time_unix_nano for each in phases] == ends[:-1] and ends[-1] <= job.span.end_time_unix_nano


@pytest.mark.parametrize("way", ["previews", "two stages", "kept", "an edit"])
def test_phases_follow_each_other(traced: RunningServer, collector: Collector, way: str) -> None:
    name, request = "phases-" + way.replace(" ", "-"), generate_request(prompt="x", num_inference_steps=4)
    if way == "previews":
        request.preview.CopyFrom(preview(every_n_steps=1)["preview"])
    elif way == "two stages":
        request.parameters.hires_fix.SetInParent()
    elif way == "kept":
        request.disconnect_policy = KEEP
    else:
        picture = png(np.zeros((32, 32, 3), "uint8"))
        request = edit_request(image=picture, prompt="x", num_inference_steps=4)
    request.request_id = name
    call = traced.images.Edit if way == "an edit" else traced.images.Generate
    Stream(call(request, metadata=[ME], timeout=60)).read()
    job = collector.job(name)
    phases = collector.phases(job)
    assert names(phases) == PHASES
    assert chained(job, phases)


class Waits(Finisher):
    """Is not done with the first picture before the engine is in the midst of the second."""

    name = "waits"
    server: RunningServer
    darkroom_api_version = 1

    @hookimpl
    def darkroom_finishers(self) -> list[Any]:
        return [self]

    def finish(self, picture: Any, request: Any, parameters: None) -> Any:
        first = self.server.app.engine.ticks
        while picture.seed == request.seed and self.server.app.engine.ticks < first + 10:
            time.sleep(0.001)
        return picture


def test_pictures_that_are_finished_while_others_are_denoised(collector: Collector, tiny_model: Path) -> None:
    """Their time is in the steps, and nowhere else."""
    waits, settings = Waits(), {"traces": collector.address, "limits": {"max_batch_rows": 2}}
    models = [{"name": "tiny", "path": tiny_model}]
    with RunningServer(models=models, plugins={"waits": waits}, **settings) as waits.server:
        done = waits.server.generate(request_id="two", num_images=2, num_inference_steps=20).of("completed")[0]
        job = collector.job("two")
    took = done.timings
    parts = took.queue_seconds + took.load_seconds + took.encode_prompt_seconds + took.denoise_seconds
    assert parts + took.decode_seconds <= took.total_seconds + 1e-6
    assert chained(job, collector.phases(job))


def test_spans_are_within_their_jobs() -> None:
    """Whatever the sums say: those of a replica are by its own clock."""
    exporter = InMemorySpanExporter()
    traces = Traces(exporter)
    phases = {"load": 0.0, "queue": 1.0, "encode": 0.5, "steps": 3.0, "decode": 2.0}
    traces.add(JobSpan("Generate", {}, began=100.0, ended=104.0, phases=phases))
    asyncio.run(traces.close())
    *inner, job = exporter.get_finished_spans()
    assert job.start_time is not None
    spans = [
        (each.name, (each.start_time - job.start_time) / 1e9, (each.end_time - job.start_time) / 1e9) for each in inner
    ]
    assert spans == [
        ("queue", 0.0, 1.0),
        ("encode", 1.0, 1.5),
        ("steps", 1.5, pytest.approx(4.0)),
    ]


def test_who_sends_them(traced: RunningServer, collector: Collector) -> None:
    start(traced, request_id="whose", num_inference_steps=1).read()
    resource = collector.job("whose").resource
    assert resource["service.name"] == "darkroom"
    assert resource["deployment.environment"] == "tests"


def test_the_callers_trace_goes_on(traced: RunningServer, collector: Collector) -> None:
    start(traced, trace=True, request_id="child", num_inference_steps=1).read()
    span = collector.job("child").span
    assert (span.trace_id.hex(), span.parent_span_id.hex(), span.trace_state) == (TRACE, PARENT, "vendor=7")


def test_what_is_no_trace_begins_one(traced: RunningServer, collector: Collector) -> None:
    metadata = [ME, ("traceparent", "00-nonsense")]
    request = generate_request(request_id="odd", num_inference_steps=1)
    Stream(traced.images.Generate(request, metadata=metadata, timeout=60)).read()
    assert not collector.job("odd").span.parent_span_id


def test_a_job_that_is_cancelled(traced: RunningServer, collector: Collector) -> None:
    stream = start(traced, request_id="cancelled", **LONG)
    stream.read_until("step")
    traced.images.Cancel(CancelRequest(request_id="cancelled"), metadata=[ME])
    assert refused(stream.read).code is grpc.StatusCode.CANCELLED
    job = collector.job("cancelled")
    assert job.attributes["rpc.response.status_code"] == job.attributes["darkroom.outcome"] == "CANCELLED"
    assert job.attributes["darkroom.steps"] == 400
    assert job.span.status.code == Status.STATUS_CODE_UNSET  # nothing of the server's failed
    assert names(collector.phases(job)) == PHASES[:4]


def test_a_client_that_leaves(traced: RunningServer, collector: Collector) -> None:
    stream = start(traced, request_id="left", **LONG)
    stream.read_until("step")
    stream.call.cancel()
    job = collector.job("left")
    assert (job.attributes["rpc.response.status_code"], job.attributes["darkroom.outcome"]) == ("CANCELLED", "CLIENT")


def test_a_deadline_that_passes(traced: RunningServer, collector: Collector) -> None:
    with traced.paused():
        stream = start(traced, request_id="late", timeout=0.5, num_inference_steps=2)
        assert refused(stream.read).code is grpc.StatusCode.DEADLINE_EXCEEDED
        job = collector.job("late")
    assert job.attributes["rpc.response.status_code"] == "DEADLINE_EXCEEDED"
    assert job.attributes["darkroom.outcome"] == "DEADLINE"
    assert job.attributes["error.type"] == "DEADLINE"
    assert job.span.status.code == Status.STATUS_CODE_ERROR
    assert set(names(collector.phases(job))) <= {"load", "queue"}  # it was never begun


def test_a_request_that_is_refused(traced: RunningServer, collector: Collector) -> None:
    failed = refused(start(traced, trace=True, request_id="refused", width=33, prompt="secret words").read)
    assert failed.reason == "INVALID_REQUEST"
    job = collector.job("refused")
    assert job.attributes == {
        "darkroom.request_id": "refused",
        "darkroom.token": "me",
        "darkroom.outcome": "INVALID_REQUEST",
        "rpc.response.status_code": "INVALID_ARGUMENT",
    }
    assert job.span.parent_span_id.hex() == PARENT
    assert collector.phases(job) == []


def test_a_request_that_is_refused_before_it_is_a_job(traced: RunningServer, collector: Collector) -> None:
    one = [("authorization", "Bearer one")]
    first = Stream(traced.images.Generate(generate_request(**LONG), metadata=one, timeout=60))
    first.read_until("accepted")
    second = generate_request(request_id="one-too-many", **LONG)
    assert refused(Stream(traced.images.Generate(second, metadata=one)).read).reason == "QUEUE_FULL"
    first.call.cancel()
    job = collector.job("one-too-many")
    assert job.attributes["darkroom.outcome"] == "QUEUE_FULL"
    assert job.attributes["darkroom.token"] == "one"


def test_a_kept_job_outlives_its_call(traced: RunningServer, collector: Collector) -> None:
    stream = start(traced, trace=True, request_id="kept", num_inference_steps=20, disconnect_policy=KEEP)
    stream.read_until("accepted")
    stream.call.cancel()
    job = collector.job("kept")
    assert job.attributes["darkroom.outcome"] == "OK"
    assert job.span.parent_span_id.hex() == PARENT
    assert names(collector.phases(job)) == PHASES


def test_a_preprocessor(traced: RunningServer, collector: Collector) -> None:
    picture = png(np.zeros((32, 32, 3), "uint8"))
    request = PreprocessRequest(request_id="map", image=picture, preprocessor="canny")
    Stream(traced.images.Preprocess(request, metadata=[ME], timeout=60)).read()
    job = collector.job("map")
    assert job.name == "darkroom.v1.ImageService/Preprocess"
    assert job.attributes["darkroom.outcome"] == "OK"
    assert collector.phases(job) == []


@pytest.mark.parametrize("path", ["/darkroom.v1.ImageService/Generate", "/v1/images/generations"])
def test_by_http(traced: RunningServer, collector: Collector, path: str) -> None:
    trace = f"{'1' if path.startswith('/v1') else '2'}" * 32
    headers = {"authorization": "Bearer t0ken", "Traceparent": f"00-{trace}-{PARENT}-01"}
    if path.startswith("/v1"):
        answer = httpx2.post(traced.app.url + path, json={"prompt": "x"}, headers=headers, timeout=30)
    else:
        headers["content-type"] = "application/connect+json"
        answer = httpx2.post(traced.app.url + path, content=envelope(b"{}"), headers=headers, timeout=30)
    assert answer.status_code == 200
    job = collector.find(lambda each: each.span.trace_id.hex() == trace and each.span.parent_span_id.hex() == PARENT)
    assert job.attributes["darkroom.outcome"] == "OK"
    assert names(collector.phases(job)) == PHASES


def test_a_job_that_fails(collector: Collector, tiny_model: Path) -> None:
    with FailingServer(tiny_model, traces=collector.address) as server:
        request = server.request("fail after_evaluation error", request_id="failed")
        assert refused(server.start(request).read).reason == "PLUGIN_FAILED"
        job = collector.job("failed")
    assert job.attributes["rpc.response.status_code"] == "INTERNAL"
    assert job.attributes["darkroom.outcome"] == job.attributes["error.type"] == "PLUGIN_FAILED"
    assert job.span.status.code == Status.STATUS_CODE_ERROR


def test_a_client_that_reads_nothing(collector: Collector, tmp_path: Path) -> None:
    model = {"name": "noise", "path": save_noise(tmp_path / "noise"), "max_edge": 1024, "max_pixels": 1024 * 1024}
    plugins, settings = {"noise": noise_family}, {"slow_reader_seconds": 0.5, "traces": collector.address}
    with RunningServer(models=[model], plugins=plugins, **settings) as server:
        size = {"width": 1024, "height": 1024, "num_images": 8, "num_inference_steps": 1}
        stream = server.start(generate_request(request_id="slow", **size))
        stream.read_until("image")
        settle(server)  # without reading on
        assert collector.job("slow").attributes["darkroom.outcome"] == "SLOW_READER"


def test_an_edge(collector: Collector, tiny_model: Path) -> None:
    """Its replicas send none of their own."""
    models, here = [{"name": "tiny", "path": tiny_model}], ReplicasHere(1)
    with RunningServer(replicas=here.open, models=models, traces=collector.address) as server:
        metadata = [("traceparent", f"00-{'e' * 32}-{PARENT}-01")]
        request = generate_request(request_id="edge", num_inference_steps=3)
        Stream(server.images.Generate(request, metadata=metadata, timeout=60)).read()
        job = collector.job("edge")
        assert job.span.parent_span_id.hex() == PARENT
        assert job.attributes["darkroom.steps"] == 3
        assert names(collector.phases(job)) == PHASES
        stream = server.start(generate_request(request_id="edge-left", **LONG))
        stream.read_until("step")
        stream.call.cancel()
        left = collector.job("edge-left")
    assert left.attributes["darkroom.outcome"] == "CLIENT"
    assert names(collector.phases(left)) == ["queue", "steps"]


def test_what_is_left_is_sent_at_the_end(tiny_model: Path) -> None:
    """By default spans are sent every 5 seconds."""
    with collecting() as collector:
        with RunningServer(models=[{"name": "tiny", "path": tiny_model}], traces=collector.address) as server:
            server.generate(request_id="last", num_inference_steps=1)
        assert collector.job("last").attributes["darkroom.outcome"] == "OK"


def test_a_collector_that_does_not_answer(tiny_model: Path) -> None:
    """It takes connections, and nothing more. The server stops before what sends the spans gives up."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        traces = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with RunningServer(models=[{"name": "tiny", "path": tiny_model}], traces=traces) as server:
            for _ in range(3):
                assert server.generate(num_inference_steps=1).kinds[-1] == "completed"
        assert "traces" in [thread.name for thread in threading.enumerate()]


def test_without_the_setting_nothing_is_imported() -> None:
    code = """
from darkroom_server.api.traced import open_tracing
from darkroom_server.cluster import edge
from darkroom_server.config.settings import Settings
assert open_tracing(Settings().traces) is None
"""
    assert loaded_by(code, ["opentelemetry"]) == []
