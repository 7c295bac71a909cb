"""Hires fix: a second stage in one job is what diffusers' two pipelines make, one after the other."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from google.protobuf.json_format import ParseDict
from PIL import Image

from darkroom.v1 import parameters_pb2 as pb
from darkroom.v1.image_service_pb2 import GenerateRequest, ListJobsRequest
from darkroom_plugins import hookimpl
from darkroom_plugins.contract import Inspector
from tests.darkroom_server.test_deterministic import SameLayout, request
from tests.darkroom_server.test_edit_parity import DEPTH, EDGES, MAX_LEVELS, PICTURE, SIZE, STEPS, Job, Oracle
from tests.darkroom_server.test_parity import CLASSES
from tests.support import RunningServer, edit_request, generate_request, png, preview, refused, settle

LARGE = 2 * SIZE
MODES = {
    pb.UPSCALER_LATENT_NEAREST: "nearest-exact",
    pb.UPSCALER_LATENT_BILINEAR: "bilinear",
    pb.UPSCALER_LATENT_BICUBIC: "bicubic",
}
FILTERS = {
    pb.UPSCALER_PIXEL_BICUBIC: Image.Resampling.BICUBIC,
    pb.UPSCALER_PIXEL_LANCZOS: Image.Resampling.LANCZOS,
}


def hires(job: Job, **fields: Any) -> Job:
    return replace(job, more={**job.more, "hires_fix": pb.HiresFix(**fields)})


def two_stages(oracle: Oracle, job: Job) -> np.ndarray:
    """The text-to-image pipeline, its latents or its picture made larger, and the image-to-image pipeline."""
    asked: pb.HiresFix = job.more["hires_fix"]
    mode = MODES.get(asked.upscaler or pb.UPSCALER_PIXEL_LANCZOS)
    if mode is not None:
        latents = oracle.run(job, output_type="latent")[None]
        small = latents.shape[-1]
        picture: Any = torch.nn.functional.interpolate(latents, size=(2 * small, 2 * small), mode=mode)
    else:
        picture = oracle.run(job).resize((LARGE, LARGE), FILTERS[asked.upscaler or pb.UPSCALER_PIXEL_LANCZOS])
    strength = asked.strength if asked.HasField("strength") else 0.35
    second = replace(job, task="img2img", picture=picture, strength=strength)
    size = {"width": LARGE, "height": LARGE} if job.controls else {}
    return np.asarray(oracle.run(second, num_inference_steps=asked.num_inference_steps or STEPS, **size), dtype=int)


CASES: dict[str, Job] = {
    "defaults": hires(Job(scheduler="euler-ancestral")),
    "latent-bilinear": hires(Job(scheduler="lcm"), upscaler=pb.UPSCALER_LATENT_BILINEAR, strength=1.0),
    "latent-nearest": hires(Job(scheduler="dpmpp-2m"), upscaler=pb.UPSCALER_LATENT_NEAREST, strength=0.5),
    "latent-bicubic": hires(
        Job(scheduler="ddim"), upscaler=pb.UPSCALER_LATENT_BICUBIC, strength=0.75, num_inference_steps=4
    ),
    "pixel-bicubic": hires(Job(scheduler="heun"), upscaler=pb.UPSCALER_PIXEL_BICUBIC, strength=0.34),
    "pixel-lanczos": hires(Job(scheduler="euler"), upscaler=pb.UPSCALER_PIXEL_LANCZOS, strength=0.5),
    "controlnets": hires(Job(scheduler="euler", controls=(("edges", {"end": 0.7}), DEPTH))),
    "lora": hires(Job(scheduler="unipc", loras=(("unet-a", 0.8), ("text", 0.5)))),
    "sdxl": hires(Job(model="sdxl", scheduler="euler"), upscaler=pb.UPSCALER_LATENT_BICUBIC),
    "sdxl, controlnet": hires(Job(model="sdxl", controls=(EDGES,)), upscaler=pb.UPSCALER_PIXEL_LANCZOS),
}
STRANGERS = [
    Job(scheduler="euler", task="img2img", strength=1.0, picture=PICTURE.resize((LARGE, LARGE))),
    Job(scheduler="lcm", task="img2img", strength=0.5),
    Job(scheduler="ddim", guidance=1.0),
]


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Oracle:
    return SameLayout(folder)


@pytest.fixture(scope="module")
def expected(oracle: Oracle) -> dict[str, np.ndarray]:
    made = {name: two_stages(oracle, job) for name, job in CASES.items()}
    for name in (
        "latent-bilinear",
        "latent-nearest",
        "latent-bicubic",
        "pixel-bicubic",
    ):  # each upscaler makes another picture
        assert np.abs(made[name] - made["pixel-lanczos"]).max() > 8
    return made


@pytest.mark.parametrize("deterministic", [False, True])
def test_equals_diffusers_two_pipelines_in_a_mixed_batch(
    deterministic: bool, edit_server: RunningServer, expected: Mapping[str, np.ndarray]
) -> None:
    strangers = [each.request() for each in STRANGERS]
    own = [request(job, deterministic) for job in CASES.values()]
    streams = edit_server.together([*own, *strangers])
    made = dict(zip(CASES, (stream.read() for stream in streams), strict=False))
    worst = {name: int(np.abs(made[name].pixels[0] - expected[name]).max()) for name in CASES}
    exact = set(CASES) - {"lora"} if deterministic else set()  # diffusers adds LoRAs in another order
    assert {name: levels for name, levels in worst.items() if levels > (0 if name in exact else MAX_LEVELS)} == {}
    second = [step.batch_rows for stream in made.values() for step in stream.of("step") if step.step > STEPS]
    assert max(second) > 2, "no second stage shared its batches"


SECOND = {
    "width": LARGE,
    "height": LARGE,
    "num_inference_steps": 6,
    "model": "sd",
    "prompt": "a",
    "seed": 3,
    "scheduler": "ddim",
}


def two_stage_request(**changes: Any) -> GenerateRequest:
    return generate_request(**{**SECOND, "hires_fix": pb.HiresFix(strength=0.5), **changes})


def test_steps_go_on_and_previews_grow(edit_server: RunningServer) -> None:
    stream = edit_server.start(two_stage_request(num_images=2, **preview(mode=pb.PREVIEW_MODE_FULL_VAE))).read()
    accepted = stream.of("accepted")[0]
    assert accepted.step_count == 9
    hires_fix = pb.HiresFix(width=128, height=128, upscaler=5, strength=0.5, num_inference_steps=6)
    assert (accepted.parameters.width, accepted.parameters.hires_fix) == (LARGE, hires_fix)
    for index in range(2):
        steps = [step for step in stream.of("step") if step.image_index == index]
        assert [(step.step, step.step_count) for step in steps] == [(n, 9) for n in range(1, 10)]
        times = [step.timestep for step in steps]
        assert times[:6] == sorted(times[:6], reverse=True)
        assert times[6:] == times[3:6], "the second stage does not take the last steps of the schedule"
        elapsed, etas = [step.elapsed_seconds for step in steps], [step.eta_seconds for step in steps]
        assert elapsed == sorted(elapsed)
        assert etas[5] > 0 == etas[8]
        # Done are 6 steps, left 3 of four times the pixels.
        assert etas[5] == pytest.approx(elapsed[5] * 12 / 6)
        sizes = [(each.step, each.width) for each in stream.of("preview") if each.image_index == index]
        assert {width for step, width in sizes if step <= 6} <= {64}
        assert {width for step, width in sizes if step > 6} <= {128}
        assert sizes
    assert stream.pixels.shape == (2, 128, 128, 3)
    assert [(each.width, each.height) for each in stream.of("image")] == [(128, 128)] * 2


def test_its_recipe_makes_it_again(edit_server: RunningServer) -> None:
    made = edit_server.start(two_stage_request(deterministic=True, hires_fix=pb.HiresFix(factor=1.5))).read()
    recipe = ParseDict(dict(made.of("image")[0].metadata["parameters"]), pb.Parameters())
    assert (recipe.width, recipe.hires_fix.width, recipe.hires_fix.HasField("factor")) == (64, 96, False)
    again = edit_server.start(GenerateRequest(parameters=recipe, deterministic=True)).read()
    assert again.pixels.shape == (1, 96, 96, 3)
    assert np.array_equal(made.pixels, again.pixels)
    line = made.pictures()[0].text["parameters"]
    assert "Size: 64x64" in line
    assert "Hires resize: 96x96, Hires steps: 6, Hires upscaler: pixel-lanczos, Denoising strength: " in line


@pytest.mark.parametrize(
    ("fields", "paths"),
    [
        ({"factor": 0.9}, {"factor"}),
        ({"factor": float("nan")}, {"factor"}),
        ({"factor": 2, "width": 128}, {"factor"}),
        ({"width": 99}, {"width"}),
        ({"height": 32}, {"height"}),
        ({"width": 128, "height": 160}, {"width"}),
        ({"width": 4096}, {"width"}),
        ({"strength": 1.1, "num_inference_steps": 0, "upscaler": 17}, {"strength", "num_inference_steps", "upscaler"}),
        ({"factor": 8, "strength": -1}, {"strength"}),
    ],
)
def test_bad_values_are_refused_by_field(edit_server: RunningServer, fields: Any, paths: set[str]) -> None:
    refusal = refused(lambda: edit_server.start(two_stage_request(hires_fix=pb.HiresFix(**fields))).read())
    assert refusal.reason == "INVALID_REQUEST"
    assert refusal.paths == {f"parameters.hires_fix.{path}" for path in paths}


def test_limits_hold_for_its_size(server: RunningServer) -> None:
    for size, where in (({"factor": 4}, "factor"), ({"width": 256}, "width"), ({"height": 256}, "height")):
        asked = generate_request(prompt="a", width=64, height=64, hires_fix=pb.HiresFix(**size))
        refusal = refused(lambda asked=asked: server.start(asked).read())
        assert refusal.paths == {f"parameters.hires_fix.{where}"}


def test_what_does_not_go_together_is_refused(edit_server: RunningServer) -> None:
    edit = edit_request(model="sd", image=png(PICTURE), hires_fix=pb.HiresFix())
    assert refused(lambda: edit_server.start(edit).read()).violations == {
        "parameters.hires_fix": "is for Generate, not for Edit"
    }
    refusal = refused(lambda: edit_server.start(two_stage_request(model="sd-9")).read())
    assert refusal.paths == {"parameters.task", "parameters.hires_fix"}
    refusal = refused(lambda: edit_server.start(two_stage_request(scheduler="ipndm")).read())
    assert (refusal.reason, refusal.paths) == ("UNSUPPORTED_COMBINATION", {"parameters.scheduler"})


@pytest.mark.parametrize("last", [2, 6, 7])
def test_cancel_stops_either_stage(edit_server: RunningServer, last: int) -> None:
    stream = edit_server.start(
        two_stage_request(num_inference_steps=6, hires_fix=pb.HiresFix(num_inference_steps=20, strength=0.7))
    )
    while stream.read_until("step").step < last:
        pass
    stream.call.cancel()
    settle(edit_server)


def test_lists_have_the_size_of_the_picture(edit_server: RunningServer) -> None:
    made = edit_server.start(two_stage_request(disconnect_policy=pb.DISCONNECT_POLICY_KEEP)).read()
    (job,) = (
        each
        for each in edit_server.images.ListJobs(ListJobsRequest()).jobs
        if each.request_id == made.events[0].request_id
    )
    assert (job.width, job.height, job.step_count, job.step) == (128, 128, 9, 9)


def test_large_pictures_are_encoded_in_tiles(folder: Path, edit_server: RunningServer) -> None:
    made = edit_server.start(two_stage_request()).read()
    warnings = made.of("completed")[0].warnings
    assert [kind in warning for kind, warning in zip(("encoded", "decoded"), warnings, strict=True)] == [True, True]
    pipe: Any = StableDiffusionPipeline.from_pretrained(folder / "sd", safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **CLASSES["ddim"][1])
    pipe.vae.enable_tiling()
    pipe.set_progress_bar_config(disable=True)
    asked = {
        "prompt": "a",
        "num_inference_steps": 6,
        "guidance_scale": made.of("accepted")[0].parameters.guidance_scale,
    }
    small = pipe(**asked, width=LARGE, height=LARGE, generator=torch.Generator().manual_seed(3)).images[0]
    large = small.resize((2 * LARGE, 2 * LARGE), Image.Resampling.LANCZOS)
    second: Any = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    expected = second(**asked, image=large, strength=0.5, generator=torch.Generator().manual_seed(3)).images[0]
    assert np.abs(made.pixels[0] - np.asarray(expected, int)).max() <= MAX_LEVELS


@pytest.mark.slow
def test_pictures_that_would_not_even_fit_in_tiles_are_refused(folder: Path) -> None:
    model = {"name": "sd", "path": folder / "sd", "max_edge": 256, "max_pixels": 256 * 256}
    with RunningServer(models=[model], max_decode_bytes=2**20) as server:
        refusal = refused(lambda: server.start(two_stage_request(hires_fix=pb.HiresFix(factor=4))).read())
    assert "MiB to decode" in refusal.violations["parameters.hires_fix.width"]


class OfText(Inspector):
    """Looks at pictures that are made from text alone."""

    name = "of-text"

    def wants(self, request: Any, parameters: Any) -> bool:
        return request.task == "txt2img" and request.edit is None

    def inspect(self, samples: Any, pictures: Any) -> Any:
        return [list(picture.shape) for picture in pictures]

    def finish(self, picture: Any, request: Any, parameters: Any) -> Any:
        assert picture.findings[self.name] == [64, 64, 3]
        return picture


class OfTextPlugin:
    darkroom_api_version = 1

    @hookimpl
    def darkroom_finishers(self) -> list[Any]:
        return [OfText()]


def test_finishers_are_those_of_the_whole_request() -> None:
    """Not of the second stage, which is an edit."""
    asked = generate_request(prompt="a", width=32, height=32, num_inference_steps=2, hires_fix=pb.HiresFix())
    with RunningServer({"of-text": OfTextPlugin()}) as server:
        made = server.start(asked).read()
    assert made.of("image")[0].metadata["of-text"] == [64, 64, 3]
