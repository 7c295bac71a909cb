"""The server's pictures are those of diffusers' StableDiffusionPipeline, alone and among strangers.

Each case first proves that it can fail: the pipeline with the case's feature switched off makes another picture.
"""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from darkroom.v1.parameters_pb2 import SchedulerSpec
from darkroom_plugins.builtin.schedulers import ENTRIES
from tests.support import RunningServer, generate_request, struct

PROMPT, NEGATIVE = "a red circle on a blue background", "blurry"
BASE = {"prompt": PROMPT, "num_inference_steps": 8, "guidance_scale": 5.0, "seed": 7}
MAX_LEVELS = 1

# What each name is in diffusers, written down a second time on purpose.
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "dpmpp-2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp-2m-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp-sde": ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp-3m-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "heun": ("HeunDiscreteScheduler", {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "kdpm2-ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "ipndm": ("IPNDMScheduler", {}),
    "sa-solver": ("SASolverScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}


def spec(name: str, **fields: Any) -> SchedulerSpec:
    options = struct(fields.pop("options")) if "options" in fields else None
    fields = {k: f"{k}_{v}".upper() for k, v in fields.items()}
    return SchedulerSpec(name=name, options=options, **fields)


# Name: the request's parameters, the pipeline's, and the pipeline's with the feature off.
Case = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
CASES: dict[str, Case] = {
    **{
        # The ancestral Euler step is that of DDPM, and Euler's that of DDIM: each is set against the other kind.
        name: (
            {"scheduler": name},
            {"scheduler": name},
            {"scheduler": "ddim" if "ancestral" in name or name == "ddpm" else "ddpm"},
        )
        for name in CLASSES
    },
    "guidance off": ({"guidance_scale": 1.0}, {"guidance_scale": 1.0}, {}),
    "guidance rescale": ({"guidance_rescale": 0.7}, {"guidance_rescale": 0.7}, {}),
    "negative prompt": ({"negative_prompt": NEGATIVE}, {"negative_prompt": NEGATIVE}, {}),
    "clip skip": ({"clip_skip": 1}, {"clip_skip": 1}, {}),
    "three images": ({"num_images": 3}, {"num_images_per_prompt": 3}, {"num_images_per_prompt": 3, "seed": 8}),
    "non-square": ({"width": 48, "height": 24}, {"width": 48, "height": 24}, {"width": 48, "height": 24, "seed": 8}),
    "eta": ({"scheduler": "ddim", "eta": 0.8}, {"scheduler": "ddim", "eta": 0.8}, {"scheduler": "ddim"}),
    "karras": (
        {"scheduler": spec("dpmpp-2m", sigma_schedule="karras")},
        {"scheduler": "dpmpp-2m", "options": {"use_karras_sigmas": True}},
        {"scheduler": "dpmpp-2m"},
    ),
    "exponential": (
        {"scheduler": spec("euler", sigma_schedule="exponential")},
        {"scheduler": "euler", "options": {"use_exponential_sigmas": True}},
        {"scheduler": "euler"},
    ),
    "beta": (
        {"scheduler": spec("heun", sigma_schedule="beta")},
        {"scheduler": "heun", "options": {"use_beta_sigmas": True}},
        {"scheduler": "heun"},
    ),
    "trailing": (
        {"scheduler": spec("ddim", timestep_spacing="trailing")},
        {"scheduler": "ddim", "options": {"timestep_spacing": "trailing"}},
        {"scheduler": "ddim"},
    ),
    "solver order": (
        {
            "scheduler": spec(
                "unipc", options={"solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}
            )
        },
        {"scheduler": "unipc", "options": {"solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}},
        {"scheduler": "ddim"},
    ),
    "plms with Runge-Kutta": (
        {"scheduler": spec("pndm", options={"skip_prk_steps": False})},
        {"scheduler": "pndm", "options": {"skip_prk_steps": False}},
        {"scheduler": "pndm"},
    ),
    "the model's own scheduler": (
        {"model": "tiny-silent"},
        {"model": "tiny-silent"},
        {"model": "tiny-silent", "options": {"clip_sample": True, "steps_offset": 0}},
    ),
    "v-prediction": ({"model": "tiny-v"}, {"model": "tiny-v"}, {"model": "tiny-v", "prediction_type": "epsilon"}),
    "v-prediction, heun": (
        {"model": "tiny-v", "scheduler": "heun"},
        {"model": "tiny-v", "scheduler": "heun"},
        {"model": "tiny-v", "scheduler": "heun", "prediction_type": "epsilon"},
    ),
}


@functools.lru_cache
def pipeline(path: Path) -> diffusers.StableDiffusionPipeline:
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(path, safety_checker=None)
    loaded.set_progress_bar_config(disable=True)
    # diffusers 0.42 looks for the layers to skip where transformers had them before version 5.
    vars(loaded.text_encoder)["text_model"] = loaded.text_encoder
    return loaded


class Oracle:
    """Diffusers' own pipelines, by the server's names."""

    def __init__(self, models: dict[str, Path]) -> None:
        self._models = models
        self._made: dict[str, np.ndarray] = {}  # by the arguments: many cases are set against the same picture
        self.table: list[tuple[str, int, int]] = []

    def __call__(self, **arguments: Any) -> np.ndarray:
        arguments = {**BASE, **arguments}
        key = json.dumps(arguments, sort_keys=True)
        if key not in self._made:
            self._made[key] = self._make(arguments)
        return self._made[key]

    def _make(self, arguments: dict[str, Any]) -> np.ndarray:
        pipe = pipeline(self._models[arguments.pop("model", "tiny")])
        name, seed = arguments.pop("scheduler", None), arguments.pop("seed")
        changes = arguments.pop("options", {})
        if "prediction_type" in arguments:
            changes["prediction_type"] = arguments.pop("prediction_type")
        own, config = pipe.scheduler, pipe.scheduler.config
        class_name, options = CLASSES[name] if name else (type(own).__name__, {})
        if name or changes:  # else the pipeline's own, untouched
            pipe.scheduler = getattr(diffusers, class_name).from_config(config, **{**options, **changes})
        count = arguments.get("num_images_per_prompt", 1)
        generators = [torch.Generator().manual_seed(seed + i) for i in range(count)]
        try:
            images = pipe(generator=generators, **arguments).images
        finally:
            pipe.scheduler = own
        return np.stack([np.asarray(image, dtype=int) for image in images])


@pytest.fixture(scope="module")
def oracle(
    tiny_model: Path, tiny_v_model: Path, tiny_silent_model: Path, request: pytest.FixtureRequest
) -> Iterator[Oracle]:
    oracle = Oracle({"tiny": tiny_model, "tiny-v": tiny_v_model, "tiny-silent": tiny_silent_model})
    yield oracle
    lines = [f"  {name:24}{alone:8}{among:9}" for name, alone, among in oracle.table]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n\nlargest difference in levels, by case: alone, among strangers\n" + "\n".join(lines))


def test_every_scheduler_has_a_case() -> None:
    assert {entry.name for entry in ENTRIES} == set(CLASSES)


@pytest.mark.parametrize("name", CASES)
def test_equals_diffusers(name: str, server: RunningServer, oracle: Oracle) -> None:
    asked, arguments, off = CASES[name]
    expected = oracle(**arguments)
    other = oracle(**off)
    assert (np.abs(expected - other).max(-1) > 8).mean() >= 0.1, "the case cannot fail"

    alone = server.generate(**{**BASE, **asked})
    strangers = [server.start(request) for request in companions(asked.get("model", "tiny"), asked)]
    for stranger in strangers:
        stranger.read_until("step")
    among = server.generate(**{**BASE, **asked})
    for stranger in strangers:
        stranger.call.cancel()

    rows = {step.batch_rows for step in alone.of("step")}
    assert len(rows) == 1
    assert max(step.batch_rows for step in among.of("step")) >= max(rows) + 7, "nobody shared its batches"
    differences = [int(np.abs(result.pixels - expected).max()) for result in (alone, among)]
    oracle.table.append((name, *differences))
    assert max(differences) <= MAX_LEVELS


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.5), (0.3, 1.0), (0.2, 0.75)])
def test_guidance_for_part_of_the_steps(start: float, end: float, server: RunningServer, tiny_model: Path) -> None:
    """As diffusers' users do it: by a callback that takes guidance and the unconditional prompt away."""
    pipe, steps, scale = pipeline(tiny_model), BASE["num_inference_steps"], BASE["guidance_scale"]
    own = pipe.scheduler
    conditional, unconditional = pipe.encode_prompt(BASE["prompt"], "cpu", 1, True)
    guided = [done / steps >= start and (done + 1) / steps <= end for done in range(steps)]

    def turn(pipe: Any, done: int, _timestep: Any, _tensors: dict[str, Any]) -> dict[str, Any]:
        now = guided[min(done + 1, steps - 1)]
        pipe._guidance_scale = scale if now else 1.0
        return {"prompt_embeds": torch.cat([unconditional, conditional]) if now else conditional}

    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(own.config)
    try:
        image = pipe(
            BASE["prompt"],
            num_inference_steps=steps,
            guidance_scale=scale if guided[0] else 1.0,
            generator=[torch.Generator().manual_seed(BASE["seed"])],
            callback_on_step_end=turn,
        ).images[0]
    finally:
        pipe.scheduler = own
    asked = {**BASE, "scheduler": "euler"}
    made = server.generate(**asked, guidance_start=start, guidance_end=end)
    assert np.abs(made.pixels[0] - np.asarray(image, dtype=int)).max() <= MAX_LEVELS
    assert [step.batch_rows for step in made.of("step")] == [2 if each else 1 for each in guided]
    whole = server.generate(**asked)
    assert np.abs(made.pixels - whole.pixels).max() > 8
    assert list(made.of("completed")[0].approximations) == [
        f"There is guidance only between {start:.0%} and {end:.0%} of the steps."
    ]
    assert not whole.of("completed")[0].approximations


def companions(model: str, asked: dict[str, Any]) -> Iterator[Any]:
    """Seven requests that share batches with this one, each with another scheduler, step count and guidance."""
    others = ["euler-ancestral", "ddim", "dpmpp-2m-sde", "heun", "unipc", "lms", "pndm"]
    size = {key: asked[key] for key in ("width", "height") if key in asked}
    for number, scheduler in enumerate(others):
        yield generate_request(
            model=model,
            prompt=f"stranger {number}",
            seed=number,
            scheduler=scheduler,
            num_inference_steps=100 + 3 * number,
            guidance_scale=1.0 if number == 3 else 2.0 + number,
            **size,
        )


def test_deterministic_gives_the_same_bytes(server: RunningServer) -> None:
    request = {**BASE, "scheduler": "euler-ancestral", "deterministic": True}
    first = server.generate(**request)
    strangers = [server.start(each) for each in companions("tiny", {})]
    again = server.generate(**request)
    for stranger in strangers:
        stranger.call.cancel()
    assert first.files() == again.files()
    assert {step.batch_rows for step in again.of("step")} == {2}
