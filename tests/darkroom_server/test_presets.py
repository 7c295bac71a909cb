"""Presets of models: what they fill in, what goes before them, and the recipes of the manual beside diffusers."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from grpc import StatusCode

from darkroom.v1 import catalog_service_pb2 as catalog_pb
from darkroom.v1 import image_service_pb2 as pb
from darkroom.v1.parameters_pb2 import DISCONNECT_POLICY_KEEP, UPSCALER_LATENT_BICUBIC, HiresFix, LoraSpec, Parameters
from tests.support import RunningServer, Stream, generate_request, png, refused, spec
from tests.tiny import save_lora
from tests.tiny_sdxl import save_sdxl

MANUAL = (Path(__file__).parents[2] / "server/presets.md").read_text()
MAX_LEVELS = 1
TRAILING = {"timestep_spacing": "trailing"}
PROMPT = "a red circle"
FAST = {
    "description": "Quick.",
    "scheduler": "dpmpp-2m",
    "sigma_schedule": "karras",
    "scheduler_options": {"solver_order": 3},
    "num_inference_steps": 3,
    "guidance_scale": 2.0,
    "guidance_rescale": 0.5,
    "clip_skip": 1,
    "negative_prompt": "blurry",
    "width": 24,
    "height": 16,
    "loras": {"a": 0.5, "b": 0.25},
}
LATENTS: dict[str, Any] = {
    "factor": 2.0,
    "upscaler": UPSCALER_LATENT_BICUBIC,
    "strength": 0.75,
    "num_inference_steps": 3,
}


@pytest.fixture(scope="module")
def assets(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("loras")
    names = enumerate("abc", 40)
    return [{"name": n, "path": save_lora(folder / f"{n}.safetensors", tiny_model, seed)} for seed, n in names]


@pytest.fixture(scope="module")
def preset_server(tiny_model: Path, assets: list[dict[str, Any]]) -> Iterator[RunningServer]:
    sharp = {"hires_fix": {**LATENTS, "upscaler": "latent-bicubic"}}
    presets = {"fast": FAST, "spaced": {"timestep_spacing": "trailing"}, "empty": {}, "sharp": sharp}
    models = [{"name": "tiny", "path": tiny_model, "presets": presets}, {"name": "plain", "path": tiny_model}]
    with RunningServer(models=models, loras=assets) as running:
        yield running


def accepted(stream: Stream) -> Parameters:
    parameters: Parameters = stream.of("accepted")[0].parameters
    return parameters


def weights(parameters: Parameters) -> dict[str, float]:
    return {lora.name: lora.weight for lora in parameters.loras}


def test_fills_what_a_request_leaves_unset(preset_server: RunningServer) -> None:
    by_preset = preset_server.generate(prompt=PROMPT, seed=7, preset="fast")
    resolved = accepted(by_preset)
    assert not resolved.preset
    scheduler = spec("dpmpp-2m", sigma_schedule="SIGMA_SCHEDULE_KARRAS", options={"solver_order": 3})
    by_hand = preset_server.generate(
        prompt=PROMPT,
        seed=7,
        scheduler=scheduler,
        num_inference_steps=3,
        guidance_scale=2.0,
        guidance_rescale=0.5,
        clip_skip=1,
        negative_prompt="blurry",
        width=24,
        height=16,
        loras=[LoraSpec(name="a", weight=0.5), LoraSpec(name="b", weight=0.25)],
    )
    assert resolved == accepted(by_hand)
    assert by_preset.pixels.shape == (1, 16, 24, 3)
    assert np.abs(by_preset.pixels - by_hand.pixels).max() <= MAX_LEVELS
    plain = preset_server.generate(prompt=PROMPT, seed=7, width=24, height=16)
    assert np.abs(by_preset.pixels - plain.pixels).max() > 8
    again = preset_server.start(pb.GenerateRequest(parameters=resolved)).read()
    assert accepted(again) == resolved


def test_what_the_request_sets_goes_before(preset_server: RunningServer) -> None:
    resolved = accepted(
        preset_server.generate(
            preset="fast",
            num_inference_steps=2,
            guidance_scale=0.0,
            negative_prompt="",
            width=32,
            loras=[LoraSpec(name="c"), LoraSpec(name="b", weight=0.0)],
            scheduler=spec("dpm++_2m", options={"lower_order_final": False}),
        )
    )
    assert (resolved.num_inference_steps, resolved.guidance_scale) == (2, 0.0)
    assert (resolved.HasField("negative_prompt"), resolved.negative_prompt) == (True, "")
    assert (resolved.width, resolved.height, resolved.clip_skip) == (32, 16, 1)
    assert weights(resolved) == {"a": 0.5, "c": 1.0, "b": 0.0}
    assert resolved.scheduler == spec(
        "dpmpp-2m", sigma_schedule="SIGMA_SCHEDULE_KARRAS", options={"solver_order": 3, "lower_order_final": False}
    )


@pytest.mark.parametrize("preset", ["fast", "spaced"])
def test_another_scheduler_gets_nothing_of_the_presets(preset_server: RunningServer, preset: str) -> None:
    resolved = accepted(preset_server.generate(preset=preset, scheduler="euler", num_inference_steps=1))
    assert resolved.scheduler == spec("euler")


def test_without_a_name_the_models_own_scheduler_is_meant(preset_server: RunningServer) -> None:
    for asked in ({}, {"scheduler": "pndm"}):
        resolved = accepted(preset_server.generate(preset="spaced", num_inference_steps=2, **asked))
        assert resolved.scheduler == spec("pndm", timestep_spacing="TIMESTEP_SPACING_TRAILING")


def test_a_second_stage(preset_server: RunningServer) -> None:
    asked = {"width": 24, "height": 16, "num_inference_steps": 2, "seed": 7}
    by_preset = preset_server.generate(preset="sharp", **asked)
    by_hand = preset_server.generate(hires_fix=HiresFix(**LATENTS), **asked)
    assert accepted(by_preset) == accepted(by_hand)
    assert by_preset.pixels.shape == (1, 32, 48, 3)
    assert np.abs(by_preset.pixels - by_hand.pixels).max() <= MAX_LEVELS
    resolved = accepted(preset_server.generate(preset="sharp", hires_fix=HiresFix(height=40, strength=0.5), **asked))
    assert resolved.hires_fix == HiresFix(
        width=64, height=40, upscaler=LATENTS["upscaler"], strength=0.5, num_inference_steps=3
    )
    edited = preset_server.edit(image=png(np.full((16, 24, 3), 90, np.uint8)), preset="sharp", num_inference_steps=2)
    assert edited.pixels.shape == (1, 16, 24, 3)


def test_an_edit_keeps_its_pictures_size(preset_server: RunningServer) -> None:
    picture = png(np.full((40, 32, 3), 90, np.uint8))
    edited = preset_server.edit(image=picture, preset="fast")
    assert edited.pixels.shape == (1, 40, 32, 3)
    assert accepted(edited).num_inference_steps == 3


def test_an_unknown_preset_is_refused_with_those_there_are(preset_server: RunningServer) -> None:
    failed = refused(lambda: preset_server.generate(preset="fats", num_inference_steps=0))
    assert failed.paths == {"parameters.preset", "parameters.num_inference_steps"}
    failed = refused(lambda: preset_server.generate(preset="fats"))
    assert (failed.code, failed.reason) == (StatusCode.NOT_FOUND, "PRESET_NOT_FOUND")
    said = "there is no preset 'fats' (did you mean 'fast'?); there are: empty, fast, sharp, spaced"
    assert failed.violations == {"parameters.preset": said}
    failed = refused(lambda: preset_server.generate(model="plain", preset="fast"))
    assert failed.violations == {"parameters.preset": "there is no preset 'fast'; there are none"}


def test_models_are_listed_with_their_presets(preset_server: RunningServer) -> None:
    plain, tiny = preset_server.catalog.ListModels(catalog_pb.ListModelsRequest()).models
    assert not plain.presets
    empty, fast, sharp, spaced = tiny.presets
    assert (empty.name, empty.parameters) == ("empty", Parameters())
    assert (fast.name, fast.description, fast.parameters.guidance_scale) == ("fast", "Quick.", 2.0)
    assert not fast.parameters.HasField("guidance_end")
    assert weights(fast.parameters) == {"a": 0.5, "b": 0.25}
    assert sharp.parameters == Parameters(hires_fix=HiresFix(**LATENTS))
    assert spaced.parameters == Parameters(scheduler={"timestep_spacing": "TIMESTEP_SPACING_TRAILING"})


def test_a_kept_job_stays_as_it_was_when_the_preset_changes(tiny_model: Path, tmp_path: Path) -> None:
    def start(**preset: Any) -> RunningServer:
        models = [{"name": "tiny", "path": tiny_model, "presets": {"fast": preset} if preset else {}}]
        return RunningServer(models=models, state_dir=tmp_path / "state")

    request = generate_request(prompt="x", preset="fast", request_id="it", disconnect_policy=DISCONNECT_POLICY_KEEP)
    with start(num_inference_steps=5, scheduler="euler") as server, server.paused():
        first = server.start(request).read_until("accepted")
    for changed in ({"num_inference_steps": 2, "scheduler": "lms"}, {}):
        with start(**changed) as server:
            watched = Stream(server.images.Watch(pb.WatchRequest(request_id="it"), timeout=60)).read()
            assert watched.of("accepted") == [first]
            assert (accepted(watched).num_inference_steps, accepted(watched).scheduler.name) == (5, "euler")
            assert len(watched.of("step")) == 5
            assert server.start(request).read().files() == watched.files()


# ---------------------------------------------------------------------------------------------- recipes of the manual


# What the recipes are in diffusers, written down a second time on purpose: the scheduler, its changes, the call; and a
# scheduler that makes another picture.
RECIPES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "lightning": ("EulerDiscreteScheduler", TRAILING, {"num_inference_steps": 4}, "DDPMScheduler"),
    "hyper": ("DDIMScheduler", {**TRAILING, "clip_sample": False}, {"num_inference_steps": 8}, "DDPMScheduler"),
    "hyper-unified": ("TCDScheduler", {}, {"num_inference_steps": 4, "eta": 0.5}, "EulerDiscreteScheduler"),
    "lcm": (
        "LCMScheduler",
        {"clip_sample": False},
        {"num_inference_steps": 4, "guidance_scale": 1.0},
        "EulerDiscreteScheduler",
    ),
    "turbo": (
        "EulerAncestralDiscreteScheduler",
        TRAILING,
        {"num_inference_steps": 1, "width": 48, "height": 48},
        "DDIMScheduler",
    ),
}


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The manual's settings, with tiny models and LoRAs at its paths."""
    (text,) = re.findall(r"```toml\n(.*?)```", MANUAL, re.DOTALL)
    settings, folder = tomllib.loads(text), tmp_path_factory.mktemp("recipes")
    for seed, model in enumerate(settings["models"]):
        model["path"] = save_sdxl(folder / model["name"], seed)
        for preset in model["presets"].values():
            preset |= {side: preset[side] * 48 // 512 for side in ("width", "height") if side in preset}
    for seed, lora in enumerate(settings["loras"]):
        lora["path"] = save_lora(folder / Path(lora["path"]).name, folder / "xl", seed=50 + seed)
    return settings


@pytest.fixture(scope="module")
def recipe_server(recipes: dict[str, Any]) -> Iterator[RunningServer]:
    with RunningServer(**recipes) as running:
        yield running


@pytest.fixture(scope="module")
def pipelines(recipes: dict[str, Any]) -> dict[str, Any]:
    loaded = {m["name"]: diffusers.StableDiffusionXLPipeline.from_pretrained(m["path"]) for m in recipes["models"]}
    for pipe in loaded.values():
        pipe.set_progress_bar_config(disable=True)
    return loaded


def picture(pipe: Any, scheduler: str, changes: dict[str, Any], arguments: dict[str, Any]) -> np.ndarray:
    own, arguments = pipe.scheduler, {"guidance_scale": 0.0, **arguments}
    pipe.scheduler = getattr(diffusers, scheduler).from_config(own.config, **changes)
    try:
        images = pipe(PROMPT, generator=[torch.Generator().manual_seed(7)], **arguments).images
    finally:
        pipe.scheduler = own
    return np.asarray(images[0], dtype=int)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_diffusers_pipeline_with_that_scheduler(
    recipe_server: RunningServer, recipes: dict[str, Any], pipelines: dict[str, Any], name: str
) -> None:
    model = next(model for model in recipes["models"] if name in model["presets"])
    pipe, files = pipelines[model["name"]], {lora["name"]: lora["path"] for lora in recipes["loras"]}
    for lora, weight in model["presets"][name].get("loras", {}).items():
        pipe.load_lora_weights(files[lora], adapter_name="it")
        pipe.set_adapters(["it"], [weight])
    scheduler, changes, arguments, other = RECIPES[name]
    expected, off = (picture(pipe, *each, arguments) for each in ((scheduler, changes), (other, {})))
    pipe.unload_lora_weights()
    assert (np.abs(expected - off).max(-1) > 8).mean() > 0.1, "the case cannot fail"
    made = recipe_server.generate(model=model["name"], preset=name, prompt=PROMPT, seed=7)
    assert np.abs(made.pixels[0] - expected).max() <= MAX_LEVELS
    assert {step.batch_rows for step in made.of("step")} == {1}


def test_every_recipe_has_a_case(recipes: dict[str, Any]) -> None:
    assert {name for model in recipes["models"] for name in model["presets"]} == set(RECIPES)
