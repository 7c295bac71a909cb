"""Refusals of what is unknown, not there yet or beyond a model, and of jobs while the server is full or stops."""

from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc

from darkroom.v1 import image_service_pb2 as image_pb
from darkroom.v1 import parameters_pb2 as pb
from tests.failing import FailingServer
from tests.support import RunningServer, refused, settle, spec

# ------------------------------------------------------------------------ NOT_FOUND, UNIMPLEMENTED, FAILED_PRECONDITION

NAMED = ["nope", "../../etc/passwd", "🎨", "x" * 5000]


@pytest.mark.parametrize("name", NAMED, ids=lambda name: name[:20])
@pytest.mark.parametrize(
    ("kind", "path"), [("model", "model"), ("scheduler", "scheduler.name"), ("task", "task")], ids=lambda x: x
)
def test_unknown_names_are_not_found(server: RunningServer, kind: str, path: str, name: str) -> None:
    failed = refused(lambda: server.generate(**{kind: name}))
    assert (failed.code, failed.reason) == (StatusCode.NOT_FOUND, f"{kind.upper()}_NOT_FOUND")
    assert failed.paths == {f"parameters.{path}"}


def test_names_are_exact(server: RunningServer) -> None:
    for wrong in ("Tiny", "tiny ", "tiny/", "./tiny"):
        assert refused(lambda wrong=wrong: server.generate(model=wrong)).reason == "MODEL_NOT_FOUND"
    for wrong in ("Euler", "default", "euler "):
        assert refused(lambda wrong=wrong: server.generate(scheduler=wrong)).reason == "SCHEDULER_NOT_FOUND"


def test_several_unknown_names_come_together(server: RunningServer) -> None:
    failed = refused(lambda: server.generate(model="nope", scheduler="nope", task="nope"))
    assert failed.code is StatusCode.NOT_FOUND
    assert failed.reason == "MODEL_NOT_FOUND"
    assert failed.paths == {"parameters.model", "parameters.scheduler.name", "parameters.task"}


@pytest.mark.parametrize("name", NAMED, ids=lambda name: name[:20])
def test_cancel_of_an_unknown_job(server: RunningServer, name: str) -> None:
    failed = refused(lambda: server.images.Cancel(image_pb.CancelRequest(request_id=name)))
    assert (failed.code, failed.reason) == (StatusCode.NOT_FOUND, "REQUEST_NOT_FOUND")
    assert failed.paths == {"request_id"}


def test_cancel_needs_a_request_id(server: RunningServer) -> None:
    failed = refused(lambda: server.images.Cancel(image_pb.CancelRequest()))
    assert (failed.code, failed.reason, failed.paths) == (
        StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        {"request_id"},
    )


@pytest.mark.parametrize(
    ("rpc", "request_"), [("Watch", image_pb.WatchRequest()), ("GetJob", image_pb.GetJobRequest())]
)
def test_a_job_must_be_named(server: RunningServer, rpc: str, request_: Any) -> None:
    made = getattr(server.images, rpc)
    failed = refused(lambda: list(made(request_)) if rpc == "Watch" else made(request_))
    assert (failed.code, failed.reason) == (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert failed.paths == {"request_id"}


@pytest.mark.parametrize(
    ("field", "value"),
    [("prompt_2", "x"), ("size_conditioning", pb.SizeConditioning(crop_left=1))],
)
def test_what_the_model_cannot_do(server: RunningServer, field: str, value: Any) -> None:
    failed = refused(lambda: server.generate(**{field: value}))
    assert (failed.code, failed.reason) == (StatusCode.FAILED_PRECONDITION, "UNSUPPORTED_COMBINATION")
    assert failed.paths == {f"parameters.{field}"}


def test_refusals_leave_nothing_behind(server: RunningServer) -> None:
    settle(server)


# ---------------------------------------------------------------------------- what depends on the state of the server


def test_a_full_queue(tiny_model: Path) -> None:
    with FailingServer(tiny_model, limits={"max_queued_jobs": 1, "max_batch_rows": 2}) as server:
        with server.gate.closed():
            first = server.patient()
            second = server.start(server.request("second"))
            second.read_until("accepted")
            third = refused(lambda: server.start(server.request("third")).read())
        assert (third.code, third.reason) == (StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert third.retry
        assert int(third.trailers["grpc-retry-pushback-ms"]) == round(third.retry * 1000)
        assert [stream.read().kinds[-1] for stream in (first, second)] == ["completed"] * 2
        settle(server)
        assert server.start(server.request("third")).read().kinds[-1] == "completed"


def test_draining_refuses_new_jobs_and_finishes_those_that_run(tiny_model: Path) -> None:
    with FailingServer(tiny_model, drain_seconds=60) as server:
        watch = health_pb2_grpc.HealthStub(server.channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        with server.gate.closed():
            first = server.patient()
            stopping = server.begin(server.app.stop())
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            failed = refused(lambda: server.start(server.request("x")).read())
        assert (failed.code, failed.reason) == (StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        assert failed.retry
        assert int(failed.trailers["grpc-retry-pushback-ms"]) == failed.retry * 1000
        assert first.read().kinds[-1] == "completed"
        watch.cancel()
        stopping.result(20)


def test_jobs_that_do_not_end_in_time_are_told(tiny_model: Path) -> None:
    with FailingServer(tiny_model, drain_seconds=0) as server:
        long = server.start(server.request("x", num_inference_steps=500))
        long.read_until("step")
        stopping = server.begin(server.app.stop())
        failed = refused(long.read)
        assert (failed.code, failed.reason) == (StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        stopping.result(20)
        assert server.app.engine.idle


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_scheduler_that_would_divide_by_zero_is_refused(server: RunningServer, deterministic: bool) -> None:
    """At zero terminal SNR the first latents say nothing of the picture: only v can be predicted there."""
    zero = spec("ddim", options={"rescale_betas_zero_snr": True}, timestep_spacing=pb.TIMESTEP_SPACING_TRAILING)
    request: dict[str, Any] = {"scheduler": zero, "num_inference_steps": 3, "deterministic": deterministic}
    failed = refused(lambda: server.generate(model="tiny", **request))
    assert (failed.code, failed.reason) == (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert "parameters.scheduler.options.rescale_betas_zero_snr" in failed.paths
    assert "ddim divides by zero" in failed.violations["parameters.scheduler.options.rescale_betas_zero_snr"]
    assert server.generate(model="tiny-v", **request).kinds[-1] == "completed"


@pytest.mark.parametrize("option", [{"predict_x0": False}, {"lower_order_final": False}, {"solver_type": "bh1"}])
def test_options_of_unipc_that_end_in_a_division_by_zero_are_refused(
    server: RunningServer, option: dict[str, Any]
) -> None:
    failed = refused(lambda: server.generate(scheduler=spec("unipc", options=option), num_inference_steps=3))
    assert (failed.code, failed.paths) == (
        StatusCode.INVALID_ARGUMENT,
        {f"parameters.scheduler.options.{next(iter(option))}"},
    )


@pytest.mark.parametrize("deterministic", [False, True])
def test_more_steps_than_a_schedule_has_are_refused(tiny_model: Path, deterministic: bool) -> None:
    """With the timestep spacing and the offset of Stable Diffusion, step 1 of 1,000 begins beyond the noise."""
    models = [{"name": "tiny", "path": tiny_model}]
    with RunningServer(models=models, limits={"max_inference_steps": 1000}) as server:
        for name in ("pndm", "ddim"):
            request: dict[str, Any] = {"scheduler": name, "deterministic": deterministic, "num_inference_steps": 1000}
            failed = refused(lambda request=request: server.generate(**request))
            assert (failed.code, failed.reason) == (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
            assert f"{name} cannot take 1000 steps" in failed.violations["parameters.num_inference_steps"]
