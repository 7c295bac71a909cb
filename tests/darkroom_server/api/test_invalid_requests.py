"""Every bad field of a request is named by its path, and all of them at once; what is just valid is done."""

from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode

from darkroom.v1 import image_service_pb2 as image_pb
from darkroom.v1 import parameters_pb2 as pb
from darkroom_plugins import hookimpl
from darkroom_plugins.builtin.tasks.txt2img import Txt2Img
from tests.support import RunningServer, generate_request, output, preview, refused, spec, struct

NAN, INF = float("nan"), float("inf")
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
        disconnect_policy=99,
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


def test_large_options_are_refused_without_reading_them(clean: RunningServer) -> None:
    options = struct({"x": "y" * 70_000})
    failed = refused(lambda: clean.generate(scheduler=pb.SchedulerSpec(name="euler", options=options)))
    assert failed.paths == {"parameters.scheduler.options"}


def test_requests_may_have_32_mib(clean: RunningServer) -> None:
    assert refused(lambda: clean.generate(prompt="x" * (32 * 2**20 - 100))).paths == {"parameters.prompt"}
    failed = refused(lambda: clean.generate(prompt="x" * (32 * 2**20)))
    assert (failed.code, failed.reason) == (StatusCode.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE")
    assert failed.message == "the request has 33,554,442 bytes, and this server takes up to 33,554,432"
    far_over = refused(lambda: clean.generate(prompt="x" * (41 * 2**20)))  # refused by gRPC
    assert (far_over.code, far_over.reason) == (StatusCode.RESOURCE_EXHAUSTED, "")


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
