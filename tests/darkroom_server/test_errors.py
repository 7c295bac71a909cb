"""Every failure is a status of the error table, through a real socket; nothing is left of it, the server goes on."""

import asyncio
import contextlib
import hashlib
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from darkroom.v1 import catalog_service_pb2 as catalog_pb
from darkroom.v1 import image_service_pb2 as image_pb
from darkroom.v1 import parameters_pb2 as pb
from darkroom_plugins import errors, hookimpl
from darkroom_plugins.contract import Adapter, BatchContract, Conditioner, Finisher, SchedulerEntry
from darkroom_plugins.txt2img import Txt2Img
from darkroom_server.status import status_of
from tests.support import RunningServer, Stream, details, generate_request, struct

MAX_METADATA = 8192  # bytes: beyond, gRPC may turn any status into RESOURCE_EXHAUSTED
PROTO = Path(__file__).parents[2] / "protos/darkroom/v1/image_service.proto"
NAN, INF = float("nan"), float("inf")


@dataclass
class Refused:
    """How a call failed."""

    code: StatusCode
    reason: str
    violations: dict[str, str]
    retry: float | None
    trailers: dict[str, Any]
    message: str

    @property
    def paths(self) -> set[str]:
        return set(self.violations)


def refused(call: Callable[[], Any]) -> Refused:
    """Make a call that must fail. A status of gRPC's own has no details."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = caught.value
    trailers = dict(error.trailing_metadata() or ())
    known = details(error) if "grpc-status-details-bin" in trailers else ("", {}, None)
    return Refused(error.code(), *known, trailers, error.details())


def settle(server: RunningServer) -> None:
    """Wait until the last job's end has reached the engine, and nothing is left of it."""
    server.run(asyncio.wait_for(server.app.images._idle.wait(), 20))
    server.run(asyncio.wait_for(server.app.engine.call(lambda: None), 20))
    assert server.app.images.active_jobs == 0
    assert not server.app.engine._batcher


@pytest.fixture
def clean(server: RunningServer) -> Iterator[RunningServer]:
    """The shared server; after the test nothing is left, and a job still goes through."""
    yield server
    settle(server)
    assert server.generate(prompt="x", num_inference_steps=1).kinds[-1] == "completed"


# ------------------------------------------------------------------------------------------------- INVALID_ARGUMENT


def spec(name: str, **fields: Any) -> pb.SchedulerSpec:
    options = struct(fields.pop("options")) if "options" in fields else None
    return pb.SchedulerSpec(name=name, options=options, **fields)


def preview(**fields: Any) -> dict[str, Any]:
    return {"preview": pb.PreviewOptions(**fields)}


def output(**fields: Any) -> dict[str, Any]:
    return {"output": pb.OutputOptions(**fields)}


BIG = 2**31 - 1
INVALID: dict[str, tuple[dict[str, Any], str]] = {
    **{
        f"{field} {size}": ({field: size}, f"parameters.{field}")
        for field in ("width", "height")
        for size in (0, 1, 33, -8, 4096, BIG, -(2**31))
    },
    "no steps": ({"num_inference_steps": 0}, "parameters.num_inference_steps"),
    "negative steps": ({"num_inference_steps": -1}, "parameters.num_inference_steps"),
    "a million steps": ({"num_inference_steps": 10**6}, "parameters.num_inference_steps"),
    "lcm, 51 steps": ({"scheduler": "lcm", "num_inference_steps": 51}, "parameters.num_inference_steps"),
    "tcd, 51 steps": ({"scheduler": "tcd", "num_inference_steps": 51}, "parameters.num_inference_steps"),
    **{
        f"{field} {value}": ({field: value}, f"parameters.{field}")
        for field, values in {
            "guidance_scale": (NAN, INF, -INF, -0.1, 100.1),
            "guidance_rescale": (NAN, INF, -0.1, 1.1),
            "guidance_start": (NAN, -0.1, 1.0, 1.1),
            "guidance_end": (NAN, 1.1),
            "cache_interval": (0, -1, 21),
            "eta": (NAN, INF, -0.1, 1.1),
            "clip_skip": (-1, 3, BIG),
            "num_images": (0, -1, 17, 1000, BIG),
            "seed": (-1, -(2**63)),
        }.items()
        for value in values
    },
    "long prompt": ({"prompt": "x" * 100_000}, "parameters.prompt"),
    "prompt one too long": ({"prompt": "🎨" * 10_001}, "parameters.prompt"),
    "long negative prompt": ({"negative_prompt": "x" * 100_000}, "parameters.negative_prompt"),
    "last seed, two images": ({"seed": 2**63 - 1, "num_images": 2}, "parameters.seed"),
    "last seeds, 16 images": ({"seed": 2**63 - 15, "num_images": 16}, "parameters.seed"),
    "unknown extension": ({"extensions": {"nope": {}}}, "parameters.extensions[nope]"),
    "empty extension": ({"extensions": {"": {}}}, "parameters.extensions[]"),
    "built-in plugin as extension": ({"extensions": {"recipe": {}}}, "parameters.extensions[recipe]"),
    **{
        f"vignette {value!r}": ({"extensions": {"vignette": {"strength": value}}}, path)
        for value, path in {
            2: "parameters.extensions[vignette].strength",
            "strong": "parameters.extensions[vignette].strength",
            None: "parameters.extensions[vignette].strength",
            INF: "parameters.extensions[vignette]",
        }.items()
    },
    "vignette, unknown field": ({"extensions": {"vignette": {"x": 1}}}, "parameters.extensions[vignette].x"),
    **{
        f"unipc {options}": ({"scheduler": spec("unipc", options=options)}, "parameters.scheduler.options" + path)
        for options, path in (
            ({"nope": 1}, ".nope"),
            ({"solver_order": "2"}, ".solver_order"),
            ({"solver_order": 2.5}, ".solver_order"),
            ({"solver_order": True}, ".solver_order"),
            ({"solver_order": 1e300}, ".solver_order"),
            ({"solver_order": [1]}, ".solver_order"),
            ({"solver_order": NAN}, ""),
            ({"solver_order": {"deep": [INF]}}, ""),
            ({"solver_type": "bh9"}, ".solver_type"),
            ({"predict_x0": 1}, ".predict_x0"),
        )
    },
    "options where there are none": ({"scheduler": spec("ipndm", options={"x": 1})}, "parameters.scheduler.options"),
    "karras for ddim": ({"scheduler": spec("ddim", sigma_schedule=2)}, "parameters.scheduler.sigma_schedule"),
    "spacing for ipndm": ({"scheduler": spec("ipndm", timestep_spacing=1)}, "parameters.scheduler.timestep_spacing"),
    "eta for euler": ({"scheduler": "euler", "eta": 0.5}, "parameters.eta"),
    "sigma schedule 99": ({"scheduler": spec("euler", sigma_schedule=99)}, "parameters.scheduler.sigma_schedule"),
    "spacing 99": ({"scheduler": spec("euler", timestep_spacing=99)}, "parameters.scheduler.timestep_spacing"),
    "what the scheduler itself refuses": (
        {"scheduler": spec("lcm", options={"original_inference_steps": 4}), "num_inference_steps": 8},
        "parameters.scheduler",
    ),
    "prompt syntax 99": ({"prompt_syntax": 99}, "parameters.prompt_syntax"),
    "disconnect policy 99": ({"disconnect_policy": 99}, "disconnect_policy"),
    "preview mode 99": (preview(mode=99), "preview.mode"),
    "preview format 99": (preview(format=99), "preview.format"),
    "preview every 0": (preview(every_n_steps=0), "preview.every_n_steps"),
    "preview edge 10": (preview(max_edge=10), "preview.max_edge"),
    "preview edge huge": (preview(max_edge=BIG), "preview.max_edge"),
    "preview interval -1": (preview(min_interval_seconds=-1), "preview.min_interval_seconds"),
    "preview interval NaN": (preview(min_interval_seconds=NAN), "preview.min_interval_seconds"),
    "output format 99": (output(format=99), "output.format"),
    "output format 99 with quality": (output(format=99, quality=90), "output.format"),
    "quality for PNG": (output(quality=90), "output.quality"),
    "quality 0": (output(format="IMAGE_FORMAT_JPEG", quality=0), "output.quality"),
    "quality 101": (output(format="IMAGE_FORMAT_WEBP", quality=101), "output.quality"),
    "request_id, bad characters": ({"request_id": "../../etc"}, "request_id"),
    "request_id, line end": ({"request_id": "x\n"}, "request_id"),
    "request_id, long": ({"request_id": "x" * 129}, "request_id"),
    "request_id, not ASCII": ({"request_id": "é"}, "request_id"),
}


@pytest.mark.parametrize("name", INVALID)
def test_a_bad_field_is_named_by_its_path(server: RunningServer, name: str) -> None:
    parameters, path = INVALID[name]
    failed = refused(lambda: server.generate(**parameters))
    assert (failed.code, failed.reason) == (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert failed.paths == {path}
    assert failed.retry is None
    assert failed.message


VALID: dict[str, dict[str, Any]] = {
    "nothing at all": {},
    "seed 0": {"seed": 0},
    "last seed": {"seed": 2**63 - 1},
    "last seeds": {"seed": 2**63 - 2, "num_images": 2},
    "long unicode prompts": {"prompt": "🎨" * 10_000, "negative_prompt": "é" * 10_000},
    "long unicode prompts, JPEG": {
        "prompt": "🎨" * 10_000,
        "negative_prompt": "🎨" * 10_000,
        **output(format="IMAGE_FORMAT_JPEG"),
    },
    "control characters": {"prompt": "a\0b\x01\x7f\n\r\u2028"},
    "least size": {"width": 8, "height": 8},
    "greatest clip_skip": {"clip_skip": 2},
    "no guidance": {"guidance_scale": 0.0},
    "greatest guidance": {"guidance_scale": 100.0, "guidance_rescale": 1.0},
    "eta 1": {"scheduler": "ddim", "eta": 1.0},
    "sigma schedule default": {"scheduler": spec("euler", sigma_schedule=1)},
    "an option of null": {"scheduler": spec("unipc", options={"solver_order": None})},
    "quality 1": output(format="IMAGE_FORMAT_JPEG", quality=1),
    "quality 100": output(format="IMAGE_FORMAT_WEBP", quality=100),
    "previews": preview(max_edge=64, every_n_steps=BIG, min_interval_seconds=86400),
    "request_id": {"request_id": "Az09-_.:" * 16},
    "disconnect policy": {"disconnect_policy": "DISCONNECT_POLICY_CANCEL", "prompt_syntax": "PROMPT_SYNTAX_PLAIN"},
}


@pytest.mark.parametrize("name", VALID)
def test_the_edges_are_valid(clean: RunningServer, name: str) -> None:
    parameters = {"num_inference_steps": 1, **VALID[name]}
    stream = clean.generate(**parameters)
    assert stream.kinds[-1] == "completed"
    assert len(stream.pictures()) == parameters.get("num_images", 1)
    seeds = [image.seed for image in stream.of("image")]
    assert seeds == [parameters.get("seed", seeds[0]) + i for i in range(len(seeds))]


def everything_wrong() -> image_pb.GenerateRequest:
    return generate_request(
        request_id="not good",
        prompt="x" * 100_000,
        negative_prompt="🎨" * 100_000,
        width=33,
        height=0,
        num_images=1000,
        num_inference_steps=10**6,
        guidance_scale=NAN,
        guidance_rescale=-1,
        guidance_start=2,
        guidance_end=-1,
        cache_interval=0,
        clip_skip=99,
        eta=INF,
        seed=-1,
        task="nope",
        scheduler=spec("unipc", sigma_schedule=99, timestep_spacing=99, options={"solver_order": "2", "x": 1}),
        extensions={"nope": {}, "vignette": {"strength": 2}},
        loras=[pb.LoraSpec(name="x")],
        controls=[pb.ControlSpec(model="x")],
        prompt_syntax=99,
        prompt_2="x",
        negative_prompt_2="x",
        size_conditioning=pb.SizeConditioning(),
        disconnect_policy="DISCONNECT_POLICY_KEEP",
        **preview(mode="PREVIEW_MODE_TINY_VAE", every_n_steps=0, min_interval_seconds=NAN, max_edge=10, format=99),
        **output(format="IMAGE_FORMAT_JPEG", quality=101),
    )


def test_all_violations_come_at_once(clean: RunningServer) -> None:
    failed = refused(lambda: clean.start(everything_wrong()).read())
    assert (failed.code, failed.reason) == (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    own = {"request_id", "disconnect_policy", "output.quality"}
    previews = {f"preview.{field}" for field in ("mode", "every_n_steps", "min_interval_seconds", "max_edge", "format")}
    numbers = {"width", "height", "num_images", "num_inference_steps", "guidance_scale", "guidance_rescale"}
    numbers |= {"clip_skip", "eta", "seed", "guidance_start", "guidance_end", "cache_interval"}
    texts = {"prompt", "negative_prompt", "prompt_2", "negative_prompt_2", "task", "prompt_syntax"}
    scheduler = {"sigma_schedule", "timestep_spacing", "options.solver_order", "options.x"}
    others = {"loras[0].name", "controls[0].model", "controls[0].image", "size_conditioning"}
    others |= {"extensions[nope]", "extensions[vignette].strength"}
    inner = numbers | texts | {f"scheduler.{field}" for field in scheduler} | others
    assert failed.paths == own | previews | {f"parameters.{field}" for field in inner}


def test_an_unknown_name_hides_no_violation(clean: RunningServer) -> None:
    """What is wrong whatever the model and the scheduler are is said beside the unknown names."""
    scheduler = spec("nope", sigma_schedule=99, timestep_spacing=99, options={"x": NAN})
    failed = refused(lambda: clean.generate(model="nope", scheduler=scheduler, width=-8, height=0, clip_skip=-1, eta=2))
    assert (failed.code, failed.reason) == (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    fields = {"model", "width", "height", "clip_skip", "eta", "scheduler.name", "scheduler.options"}
    fields |= {"scheduler.sigma_schedule", "scheduler.timestep_spacing"}
    assert failed.paths == {f"parameters.{field}" for field in fields}


@pytest.mark.parametrize("letter", ["x", "é", "🎨", "%", '"', "\n"])
def test_details_stay_small_whatever_comes(clean: RunningServer, letter: str) -> None:
    """gRPC refuses large metadata at random between its soft and its hard limit: so the size counts, too."""
    long = letter * 5000
    request = generate_request(
        model=long, task=long, scheduler=long, width=33, extensions={f"{i:03}{long}": {long: 1} for i in range(100)}
    )
    for _ in range(10):
        failed = refused(lambda: clean.start(request).read())
        assert (failed.code, failed.reason) == (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
        assert len(failed.violations) >= 5
    size = metadata_size(failed.message, failed.trailers)
    assert size < MAX_METADATA


def metadata_size(message: str, trailers: dict[str, Any]) -> int:
    """The trailers' size as gRPC counts it: 32 bytes more for each, the message in percent-encoding."""
    encoded = urllib.parse.quote(message, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")
    every = {":status": "200", "content-type": "application/grpc", "grpc-status": "3", **trailers}
    return sum(len(k) + len(v) + 32 for k, v in every.items()) + len("grpc-message") + len(encoded) + 32


def test_violations_keep_within_their_limit(clean: RunningServer) -> None:
    extensions = {f"{i:03}": {} for i in range(100)}
    failed = refused(lambda: clean.generate(extensions=extensions))
    assert (failed.code, failed.reason) == (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert 10 <= len(failed.violations) <= 50
    size = metadata_size(failed.message, failed.trailers)
    assert size < MAX_METADATA
    too_many = refused(lambda: clean.generate(extensions={f"{i}": {} for i in range(101)}))
    assert too_many.paths == {"parameters.extensions"}


def test_large_options_are_refused_without_reading_them(clean: RunningServer) -> None:
    options = struct({"x": "y" * 70_000})
    failed = refused(lambda: clean.generate(scheduler=pb.SchedulerSpec(name="euler", options=options)))
    assert failed.paths == {"parameters.scheduler.options"}


def test_requests_may_have_32_mib(clean: RunningServer) -> None:
    assert refused(lambda: clean.generate(prompt="x" * (32 * 2**20 - 100))).paths == {"parameters.prompt"}
    assert refused(lambda: clean.generate(prompt="x" * (32 * 2**20))).code is StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe"], ids=["garbage", "bad UTF-8"])
def test_what_is_no_message_is_refused_in_our_words(clean: RunningServer, data: bytes) -> None:
    call = clean.channel.unary_stream("/darkroom.v1.ImageService/Generate")
    failed = refused(lambda: list(call(data, timeout=20)))
    assert failed.code in (StatusCode.INVALID_ARGUMENT, StatusCode.INTERNAL)
    assert "<class" not in failed.message


def test_a_task_of_another_rpc_is_refused(tiny_model: Path) -> None:
    class EditTask(Txt2Img):
        name = "edit-only"
        rpcs = ("Edit",)

    class Plugin:
        darkroom_api_version = 1

        @hookimpl
        def darkroom_tasks(self) -> list[Txt2Img]:
            return [EditTask()]

    with RunningServer(plugins={"edit": Plugin()}, models=[{"name": "tiny", "path": tiny_model}]) as server:
        failed = refused(lambda: server.generate(task="edit-only"))
    assert (failed.code, failed.paths) == (StatusCode.INVALID_ARGUMENT, {"parameters.task"})


# ------------------------------------------------------- NOT_FOUND, UNIMPLEMENTED, FAILED_PRECONDITION, ALREADY_EXISTS

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


NOT_YET: dict[str, tuple[dict[str, Any], str]] = {
    "keep": ({"disconnect_policy": "DISCONNECT_POLICY_KEEP"}, "disconnect_policy"),
}


@pytest.mark.parametrize("name", NOT_YET)
def test_what_is_not_there_yet_is_refused_by_its_path(server: RunningServer, name: str) -> None:
    parameters, path = NOT_YET[name]
    failed = refused(lambda: server.generate(**parameters))
    assert (failed.code, failed.reason) == (StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED")
    assert failed.paths == {path}
    assert failed.message.endswith("not there yet")


def test_what_is_not_there_yet_comes_at_once(server: RunningServer) -> None:
    parameters = {name: value for case, _ in NOT_YET.values() for name, value in case.items()}
    failed = refused(lambda: server.generate(**parameters))
    assert failed.code is StatusCode.UNIMPLEMENTED
    assert failed.paths == {path for _, path in NOT_YET.values()}


RPCS_TO_COME = [
    ("images", "Watch", image_pb.WatchRequest()),
]


@pytest.mark.parametrize(("service", "rpc", "request_"), RPCS_TO_COME, ids=[rpc for _, rpc, _ in RPCS_TO_COME])
def test_rpcs_that_are_not_there_yet_say_so(server: RunningServer, service: str, rpc: str, request_: Any) -> None:
    call = getattr(getattr(server, service), rpc)
    failed = refused(lambda: list(call(request_)))
    assert (failed.code, failed.reason) == (StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED")
    assert failed.violations == {}
    assert failed.message.endswith("not there yet")


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


def test_a_result_that_is_not_finite(clean: RunningServer) -> None:
    """diffusers' UniPC with bh1 and a final sigma of zero takes the logarithm of zero."""
    scheduler = spec("unipc", options={"solver_type": "bh1"})
    failed = refused(lambda: clean.generate(prompt="x", num_inference_steps=4, scheduler=scheduler))
    assert (failed.code, failed.reason) == (StatusCode.INTERNAL, "NON_FINITE")


def test_a_deadline_ends_the_job(clean: RunningServer) -> None:
    request = generate_request(prompt="x", num_inference_steps=500, num_images=16)
    failed = refused(lambda: clean.start(request, timeout=0.2).read())
    assert failed.code is StatusCode.DEADLINE_EXCEEDED


def test_a_deadline_that_has_passed(clean: RunningServer) -> None:
    assert refused(lambda: clean.start(generate_request(), timeout=0).read()).code is StatusCode.DEADLINE_EXCEEDED


# --------------------------------------------------------------------------------- plugins that fail, where and how

SECRET = "/home/operator/secret"
PLACES = ("wants", "first_evaluation", "begin", "task_begin", "condition", "applied", "after_evaluation", "finish")
FAULTS: dict[str, Callable[[], Exception]] = {
    "error": lambda: RuntimeError(SECRET),
    "unset": lambda: KeyError(SECRET),
    "memory": lambda: torch.OutOfMemoryError(SECRET),
    "device": lambda: RuntimeError(f"CUDA error: an illegal memory access was encountered {SECRET}"),
}


def stumble(place: str, prompt: str) -> None:
    """Raise where the prompt says so: `fail PLACE FAULT`."""
    match prompt.split():
        case ["fail", where, fault] if where == place:
            raise FAULTS[fault]()


class Gate:
    """Holds the engine in the middle of a job of the prompt `patient`, until the test lets it go on."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    def wait(self) -> None:
        assert self._open.wait(60)


class FailingTask(Txt2Img):
    name = "failing"

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def first_evaluation(self, request: Any, timesteps: torch.Tensor, order: int) -> int:
        stumble("first_evaluation", request.prompt)
        return 0

    def begin(self, sample: Any) -> None:
        stumble("task_begin", sample.request.prompt)
        super().begin(sample)

    def after_evaluation(self, sample: Any, latents: torch.Tensor) -> torch.Tensor:
        if sample.request.prompt == "patient" and sample.evaluation == 1:
            self.gate.wait()
        if sample.evaluation == 1:
            stumble("after_evaluation", sample.request.prompt)
        return latents


class FailingConditioner(Conditioner):
    name = "failing"

    def wants(self, request: Any) -> bool:
        stumble("wants", request.prompt)
        return request.task == "failing"

    def begin(self, sample: Any) -> None:
        stumble("begin", sample.request.prompt)

    def condition(self, evaluation: Any) -> None:
        for row in evaluation.rows:
            if row.sample.evaluation == 2:
                stumble("condition", row.sample.request.prompt)
        if len(evaluation.rows) > 2 and any(row.sample.request.prompt == "crowded" for row in evaluation.rows):
            raise torch.OutOfMemoryError(SECRET)


class KeyedConditioner(Conditioner):
    name = "failing-key"
    contract = BatchContract.KEYED

    def wants(self, request: Any) -> bool:
        return request.prompt.startswith("fail key") or request.prompt == "unhashable key"

    def key(self, request: Any) -> Any:
        stumble("key", request.prompt)
        return []


class FailingAdapter(Adapter):
    name = "failing"

    def wants(self, request: Any) -> bool:
        return request.task == "failing"

    @contextlib.contextmanager
    def applied(self, model: Any, evaluation: Any) -> Iterator[None]:
        for row in evaluation.rows:
            if row.sample.evaluation == 2:
                stumble("applied", row.sample.request.prompt)
        yield


class FailingFinisher(Finisher):
    name = "failing"

    def finish(self, picture: Any, request: Any, parameters: None) -> Any:
        stumble("finish", request.prompt)
        if request.prompt == "no picture":
            return None
        if request.prompt == "no JSON":
            picture.metadata["failing"] = object()
        return picture


class FailingScheduler(DDIMScheduler):
    def set_timesteps(self, *arguments: Any, **more: Any) -> None:
        raise RuntimeError(SECRET)


class Failing:
    """A plugin that fails wherever a plugin can."""

    darkroom_api_version = 1

    def __init__(self) -> None:
        self.gate = Gate()

    @hookimpl
    def darkroom_tasks(self) -> list[Any]:
        return [FailingTask(self.gate)]

    @hookimpl
    def darkroom_conditioners(self) -> list[Any]:
        return [FailingConditioner(), KeyedConditioner()]

    @hookimpl
    def darkroom_adapters(self) -> list[Any]:
        return [FailingAdapter()]

    @hookimpl
    def darkroom_finishers(self) -> list[Any]:
        return [FailingFinisher()]

    @hookimpl
    def darkroom_schedulers(self) -> list[Any]:
        return [SchedulerEntry(name="failing", scheduler=FailingScheduler)]


class FailingServer(RunningServer):
    """A server with that plugin, on which a `patient` job can be held while others come."""

    def __init__(self, tiny_model: Path, **settings: Any) -> None:
        plugin = Failing()
        self.gate = plugin.gate
        super().__init__(plugins={"failing": plugin}, models=[{"name": "tiny", "path": tiny_model}], **settings)

    def request(self, prompt: str, **parameters: Any) -> image_pb.GenerateRequest:
        given = {"task": "failing", "num_inference_steps": 6, "scheduler": "ddim", "seed": 3, **parameters}
        return generate_request(prompt=prompt, **given)

    def patient(self, **parameters: Any) -> Stream:
        """A job in the midst of its steps."""
        stream = self.start(self.request("patient", **parameters))
        stream.read_until("step")
        return stream

    def beside(self, *requests: image_pb.GenerateRequest) -> tuple[Stream, list[Stream]]:
        """A patient job, and others that share its batches from the first to the last evaluation."""
        with self.gate.closed():
            patient = self.patient()
            others = [self.start(request) for request in requests]
            for other in others:
                with contextlib.suppress(grpc.RpcError):
                    other.read_until("accepted")
        return patient, others

    def secret_of(self, failed: Refused) -> bool:
        return SECRET in failed.message or SECRET.encode() in failed.trailers.get("grpc-status-details-bin", b"")


@pytest.fixture(scope="module")
def failing_server(tiny_model: Path) -> Iterator[FailingServer]:
    with FailingServer(tiny_model) as server:
        yield server


@pytest.fixture(scope="module")
def alone(failing_server: FailingServer) -> np.ndarray:
    """The picture of the patient job when nobody is there."""
    return failing_server.start(failing_server.request("patient")).read().pixels


def check_unharmed(patient: Stream, alone: np.ndarray) -> None:
    assert patient.read().kinds[-1] == "completed"
    assert [step.step for step in patient.of("step")] == list(range(1, 7))
    assert np.abs(patient.pixels - alone).max() <= 1


@pytest.mark.parametrize("fault", ["error", "unset"])
@pytest.mark.parametrize("place", PLACES)
def test_a_plugin_that_fails_hurts_only_its_request(
    failing_server: FailingServer, alone: np.ndarray, place: str, fault: str
) -> None:
    server = failing_server
    patient, (failing, good) = server.beside(server.request(f"fail {place} {fault}"), server.request("good"))
    failed = refused(failing.read)
    assert (failed.code, failed.reason) == (StatusCode.INTERNAL, "PLUGIN_FAILED")
    assert not server.secret_of(failed)
    check_unharmed(patient, alone)
    assert good.read().kinds[-1] == "completed"
    assert max(step.batch_rows for step in patient.of("step")) >= 4
    settle(server)


@pytest.mark.parametrize("prompt", ["no picture", "no JSON"])
@pytest.mark.parametrize("format", ["IMAGE_FORMAT_PNG", "IMAGE_FORMAT_JPEG"])
def test_a_finisher_that_gives_nonsense(failing_server: FailingServer, prompt: str, format: str) -> None:
    request = failing_server.request(prompt, **output(format=format))
    failed = refused(lambda: failing_server.start(request).read())
    assert (failed.code, failed.reason) == (StatusCode.INTERNAL, "PLUGIN_FAILED")
    settle(failing_server)


def test_a_scheduler_that_fails_keeps_its_words(failing_server: FailingServer) -> None:
    """A scheduler may refuse what is asked of it; but what it says of that is its own, and no plugin's words go out."""
    failed = refused(lambda: failing_server.start(failing_server.request("x", scheduler="failing")).read())
    assert failed.code in (StatusCode.INVALID_ARGUMENT, StatusCode.INTERNAL)
    assert not failing_server.secret_of(failed)
    assert SECRET not in str(failed.violations)
    settle(failing_server)


@pytest.mark.parametrize("place", PLACES[2:])
def test_out_of_memory(failing_server: FailingServer, alone: np.ndarray, place: str) -> None:
    server = failing_server
    patient, (failing,) = server.beside(server.request(f"fail {place} memory"))
    failed = refused(failing.read)
    assert (failed.code, failed.reason) == (StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY")
    assert failed.retry is None
    assert not server.secret_of(failed)
    check_unharmed(patient, alone)
    settle(server)


def test_out_of_memory_in_a_full_batch_fails_nobody(failing_server: FailingServer, alone: np.ndarray) -> None:
    server = failing_server
    patient, others = server.beside(*[server.request("crowded", seed=seed) for seed in range(3)])
    check_unharmed(patient, alone)
    for seed, other in enumerate(others):
        expected = server.start(server.request("crowded", seed=seed)).read().pixels
        assert np.abs(other.read().pixels - expected).max() <= 1
    settle(server)


def test_one_of_several_images_fails_its_job_alone(failing_server: FailingServer, alone: np.ndarray) -> None:
    server = failing_server
    patient, (failing,) = server.beside(server.request("fail condition error", num_images=3))
    assert refused(failing.read).reason == "PLUGIN_FAILED"
    check_unharmed(patient, alone)
    settle(server)


@pytest.mark.parametrize("prompt", ["fail key error", "unhashable key"])
def test_a_batch_key_that_fails(tiny_model: Path, prompt: str) -> None:
    """The engine asks for it when a job comes in, and must outlive it."""
    with FailingServer(tiny_model) as server:
        failed = refused(lambda: server.start(server.request(prompt), timeout=5).read())
        assert (failed.code, failed.reason) == (StatusCode.INTERNAL, "PLUGIN_FAILED")
        assert not server.secret_of(failed)
        assert server.start(server.request("x"), timeout=5).read().kinds[-1] == "completed"
        settle(server)


@pytest.mark.parametrize("place", ["condition", "begin", "task_begin", "after_evaluation", "finish"])
def test_device_lost(tiny_model: Path, place: str) -> None:
    """A device that fails is lost for every job, wherever in the life of a sample it was noticed."""
    with FailingServer(tiny_model) as server:
        patient, (failing, second) = server.beside(
            server.request(f"fail {place} device", num_inference_steps=4),
            server.request("second", num_inference_steps=200),
        )
        failed = refused(failing.read)
        assert (failed.code, failed.reason) == (StatusCode.UNAVAILABLE, "DEVICE_LOST")
        assert failed.retry
        assert int(failed.trailers["grpc-retry-pushback-ms"]) == failed.retry * 1000
        assert not server.secret_of(failed)
        others = [refused(stream.read) for stream in ([second] if place == "finish" else [patient, second])]
        assert {(other.code, other.reason) for other in others} == {(StatusCode.UNAVAILABLE, "DEVICE_LOST")}
        server.run(asyncio.wait_for(server.app.failed.wait(), 5))
        assert refused(lambda: server.start(server.request("x")).read()).code is StatusCode.UNAVAILABLE
        settle(server)


def test_a_preview_decoder_that_fails_leaves_out_its_previews(
    failing_server: FailingServer, alone: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(latents: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(SECRET)

    server = failing_server
    monkeypatch.setitem(server.app._decoders._built, ("tiny", "full-vae"), fail)
    patient, (failing,) = server.beside(server.request("x", **preview(mode="PREVIEW_MODE_FULL_VAE")))
    assert failing.read().kinds[-1] == "completed"
    assert failing.of("preview") == []
    warnings = failing.of("completed")[0].warnings
    assert warnings
    assert SECRET not in str(warnings)
    check_unharmed(patient, alone)
    assert len(patient.of("preview")) == 6
    settle(server)


def test_the_log_tells_the_fault_and_nobodys_prompt(
    failing_server: FailingServer, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    request = failing_server.request("fail task_begin error", negative_prompt="private words")
    refused(lambda: failing_server.start(request).read())
    settle(failing_server)
    logged = "".join(capfd.readouterr()) + caplog.text
    assert SECRET in logged
    assert "task_begin" in logged  # the traceback
    assert "private words" not in logged


# ---------------------------------------------------------------------------- what depends on the state of the server


def test_a_request_id_in_use(failing_server: FailingServer, alone: np.ndarray) -> None:
    server = failing_server
    with server.gate.closed():
        first = server.patient(request_id="twice")
        failed = refused(lambda: server.start(server.request("other", request_id="twice")).read())
    assert (failed.code, failed.reason) == (StatusCode.ALREADY_EXISTS, "REQUEST_ID_IN_USE")
    check_unharmed(first, alone)
    settle(server)
    again = server.start(server.request("other", request_id="twice")).read()
    assert again.kinds[-1] == "completed"
    settle(server)


def test_a_full_queue(tiny_model: Path) -> None:
    with FailingServer(tiny_model, limits={"max_queued_jobs": 1, "max_batch_rows": 2}) as server:
        with server.gate.closed():
            first = server.patient()
            second = server.start(server.request("second"))
            second.read_until("accepted")
            third = refused(lambda: server.start(server.request("third")).read())
        assert (third.code, third.reason) == (StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert third.retry
        assert int(third.trailers["grpc-retry-pushback-ms"]) == third.retry * 1000
        assert [stream.read().kinds[-1] for stream in (first, second)] == ["completed"] * 2
        settle(server)
        assert server.start(server.request("third")).read().kinds[-1] == "completed"


def health(server: RunningServer) -> int:
    stub = health_pb2_grpc.HealthStub(server.channel)
    return stub.Check(health_pb2.HealthCheckRequest(), timeout=20).status


def test_draining_refuses_new_jobs_and_finishes_those_that_run(tiny_model: Path) -> None:
    with FailingServer(tiny_model, drain_seconds=60) as server:
        watch = health_pb2_grpc.HealthStub(server.channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        with server.gate.closed():
            first = server.patient()
            stopping = asyncio.run_coroutine_threadsafe(server.app.stop(), server._loop)
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
        stopping = asyncio.run_coroutine_threadsafe(server.app.stop(), server._loop)
        failed = refused(long.read)
        assert (failed.code, failed.reason) == (StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        stopping.result(20)
        assert not server.app.engine._batcher


BEARERS = {"user": "t0ken", "operator": "0perator"}


@pytest.fixture(scope="module")
def locked_server(tiny_model: Path) -> Iterator[RunningServer]:
    hashed = {role: hashlib.sha256(token.encode()).hexdigest() for role, token in BEARERS.items()}
    tokens = [{"name": role, "role": role, "sha256": each} for role, each in hashed.items()]
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], tokens=tokens) as server:
        yield server


TOKENS = {
    "none": None,
    "wrong": "Bearer wrong",
    "empty": "",
    "no word": "t0ken",
    "empty token": "Bearer ",
    "longer": "Bearer t0ken2",
    "basic": "Basic t0ken",
    "hash": f"Bearer {hashlib.sha256(b't0ken').hexdigest()}",
}


@pytest.mark.parametrize("name", TOKENS)
def test_calls_without_the_token_are_refused(locked_server: RunningServer, name: str) -> None:
    token = TOKENS[name]
    metadata = [("authorization", token)] if token is not None else []
    reflection = reflection_pb2_grpc.ServerReflectionStub(locked_server.channel)
    ask = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    calls: list[Callable[[], Any]] = [
        lambda: list(locked_server.images.Generate(generate_request(), metadata=metadata)),
        lambda: locked_server.images.Cancel(image_pb.CancelRequest(request_id="x"), metadata=metadata),
        lambda: locked_server.catalog.ListModels(catalog_pb.ListModelsRequest(), metadata=metadata),
        lambda: list(locked_server.catalog.LoadModel(catalog_pb.LoadModelRequest(), metadata=metadata)),
        lambda: list(reflection.ServerReflectionInfo(ask, metadata=metadata)),
        lambda: locked_server.channel.unary_unary("/darkroom.v1.ImageService/Nope")(b"", metadata=metadata),
    ]
    for call in calls:
        failed = refused(call)
        assert (failed.code, failed.reason) == (StatusCode.UNAUTHENTICATED, "")
        assert "t0ken" not in failed.message
    settle(locked_server)


@pytest.mark.parametrize("role", BEARERS)
def test_each_right_token_passes_and_health_needs_none(locked_server: RunningServer, role: str) -> None:
    metadata = [("authorization", f"Bearer {BEARERS[role]}")]
    call = locked_server.images.Generate(generate_request(num_inference_steps=1), metadata=metadata, timeout=20)
    assert Stream(call).read().kinds[-1] == "completed"
    assert locked_server.catalog.ListModels(catalog_pb.ListModelsRequest(), metadata=metadata).models
    assert health(locked_server) == health_pb2.HealthCheckResponse.SERVING
    settle(locked_server)


def test_a_job_belongs_to_the_token_that_started_it(locked_server: RunningServer) -> None:
    mine, yours = ([("authorization", f"Bearer {token}")] for token in BEARERS.values())
    long = generate_request(request_id="same", num_inference_steps=500)
    first = Stream(locked_server.images.Generate(long, metadata=mine, timeout=60))
    first.read_until("step")
    cancel = image_pb.CancelRequest(request_id="same")
    failed = refused(lambda: locked_server.images.Cancel(cancel, metadata=yours))
    assert (failed.code, failed.reason) == (StatusCode.NOT_FOUND, "REQUEST_NOT_FOUND")
    short = generate_request(request_id="same", num_inference_steps=1)
    other = Stream(locked_server.images.Generate(short, metadata=yours, timeout=60)).read()
    assert other.kinds[-1] == "completed"
    assert locked_server.images.Cancel(cancel, metadata=mine).cancelled
    assert refused(first.read).code == StatusCode.CANCELLED
    settle(locked_server)


def operators_calls(server: RunningServer, **options: Any) -> list[Callable[[], Any]]:
    return [
        lambda: list(server.catalog.LoadModel(catalog_pb.LoadModelRequest(model="none"), **options)),
        lambda: server.catalog.UnloadModel(catalog_pb.UnloadModelRequest(model="none"), **options),
    ]


def test_an_operators_calls_need_an_operators_token(locked_server: RunningServer, server: RunningServer) -> None:
    user, operator = ([("authorization", f"Bearer {token}")] for token in BEARERS.values())
    for call in operators_calls(locked_server, metadata=user):
        failed = refused(call)
        assert failed.code == StatusCode.UNAUTHENTICATED
        assert failed.message == "this call wants an operator's token, and this is a user's"
    for call in (*operators_calls(locked_server, metadata=operator), *operators_calls(server)):  # or none on loopback
        assert refused(call).code != StatusCode.UNAUTHENTICATED


# --------------------------------------------------------------------------------------------------- the table itself

TABLE: dict[type[errors.DarkroomError], tuple[str, str]] = {
    errors.InvalidRequest: ("INVALID_ARGUMENT", "INVALID_REQUEST"),
    errors.NotFound: ("NOT_FOUND", "MODEL_NOT_FOUND"),
    errors.UnsupportedCombination: ("FAILED_PRECONDITION", "UNSUPPORTED_COMBINATION"),
    errors.RequestIdInUse: ("ALREADY_EXISTS", "REQUEST_ID_IN_USE"),
    errors.NotImplementedYet: ("UNIMPLEMENTED", "NOT_IMPLEMENTED"),
    errors.QueueFull: ("RESOURCE_EXHAUSTED", "QUEUE_FULL"),
    errors.OutOfMemory: ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY"),
    errors.ShuttingDown: ("UNAVAILABLE", "SHUTTING_DOWN"),
    errors.DeviceLost: ("UNAVAILABLE", "DEVICE_LOST"),
    errors.DeadlineExceeded: ("DEADLINE_EXCEEDED", ""),
    errors.Cancelled: ("CANCELLED", ""),
    errors.Unauthenticated: ("UNAUTHENTICATED", ""),
    errors.LoadFailed: ("INTERNAL", "LOAD_FAILED"),
    errors.PluginFailed: ("INTERNAL", "PLUGIN_FAILED"),
    errors.NonFinite: ("INTERNAL", "NON_FINITE"),
}
RETRIED = {errors.QueueFull, errors.ShuttingDown, errors.DeviceLost}


def leaves(kind: type[errors.DarkroomError]) -> set[type[errors.DarkroomError]]:
    """The classes of errors that are raised: those without classes of their own, of ours."""
    own = [each for each in kind.__subclasses__() if each.__module__ == errors.__name__]
    return set().union(*(leaves(each) for each in own)) if own else {kind}


def make(kind: type[errors.DarkroomError]) -> errors.DarkroomError:
    violations = [errors.Violation("parameters.model", "nope")]
    if kind is errors.NotFound:
        return errors.NotFound("model", violations)
    return kind(violations) if issubclass(kind, errors.RequestRefused) else kind("what happened")


class Raised(grpc.RpcError):
    """An error's status as a client sees it."""

    def __init__(self, error: errors.DarkroomError) -> None:
        self._code, self._message, self._trailers = status_of(error)

    def code(self) -> StatusCode:
        return self._code

    def details(self) -> str:
        return self._message

    def trailing_metadata(self) -> Any:
        return self._trailers


def test_every_error_has_its_status() -> None:
    assert leaves(errors.DarkroomError) == set(TABLE)
    for kind, (code, reason) in TABLE.items():
        raised = Raised(make(kind))
        found, violations, retry = details(raised)
        assert (raised.code().name, found) == (code, reason), kind
        assert bool(violations) == issubclass(kind, errors.RequestRefused)
        assert (retry is not None) == (kind in RETRIED)
        pushback = dict(raised.trailing_metadata()).get("grpc-retry-pushback-ms")
        assert pushback == (None if retry is None else str(int(retry * 1000)))


def test_the_api_documents_the_same_table() -> None:
    documented = re.findall(r"^//   .*\s([A-Z_]{6,})  +([A-Z_]{6,}|-)(  \(\+ RetryInfo\))?", PROTO.read_text(), re.M)
    rows = {(code, reason.strip("-")) for code, reason, _ in documented}
    ours = set(TABLE.values())
    kinds = {"MODEL", "LORA", "CONTROLNET", "SCHEDULER", "PREPROCESSOR", "TASK", "REQUEST"}
    assert rows == ours | {("NOT_FOUND", f"{kind}_NOT_FOUND") for kind in kinds}
    assert {reason for _, reason, retry in documented if retry} == {kind.reason for kind in RETRIED}


@pytest.mark.parametrize("letter", ["x", "é", "🎨", "%", '"', "\n"])
def test_no_status_is_too_large(letter: str) -> None:
    long = letter * 10_000
    for error in (
        errors.InvalidRequest([errors.Violation(long[:200], long[:200])] * 50),
        errors.InvalidRequest([errors.Violation(long, long)]),
        errors.UnsupportedCombination([errors.Violation("x", long)] * 3),
        errors.RequestIdInUse(long),
        errors.QueueFull(long),
    ):
        raised = Raised(error)
        size = metadata_size(raised.details(), dict(raised.trailing_metadata()))
        assert size < MAX_METADATA
        assert details(raised)[0] == error.reason
