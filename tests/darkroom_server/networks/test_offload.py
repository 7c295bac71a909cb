"""Memory options with everything at once: step batching, LoRAs, ControlNets and edits, beside a model without any."""

import math
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from darkroom.v1.edits_pb2 import ImageToImage
from darkroom.v1.parameters_pb2 import PREVIEW_MODE_FULL_VAE, PREVIEW_MODE_OFF, ControlSpec, LoraSpec, PreviewOptions
from darkroom_plugins import hookimpl
from darkroom_plugins.contract import Conditioner
from darkroom_server.engine.offload_turns import MAX_EVALUATIONS
from darkroom_server.networks import memory_checks
from darkroom_server.networks.compiled import is_compiling
from darkroom_server.networks.conversion import quantise
from tests.support import RunningServer, Stream, edit_request, generate_request, png
from tests.tiny import save_controlnet, save_lora, save_sd

# Each with the model whose pictures it must equal: itself, or one whose weights are rounded beforehand.
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "model": ("plain", {"offload": "model"}),
    "sequential": ("plain", {"offload": "sequential"}),
    "group": ("plain", {"offload": "group"}),
    "sliced": ("plain", {"attention_slicing": "auto", "vae_slicing": True, "vae_tiling": True}),
    "kernel": ("plain", {"attention_backend": "_native_math", "offload": "model"}),
    "cast": ("rounded-cast", {"layerwise_casting": "float8_e4m3fn"}),
    "cast-model": ("rounded-cast", {"layerwise_casting": "float8_e4m3fn", "offload": "model"}),
    "cast-group": ("rounded-cast", {"layerwise_casting": "float8_e4m3fn", "offload": "group"}),
}
if find_spec("torchao"):
    OPTIONS |= {
        "int8": ("rounded-int8", {"quantize": "int8"}),
        "int8-model": ("rounded-int8", {"quantize": "int8", "offload": "model"}),
        "float8-group": ("rounded-float8", {"quantize": "float8", "offload": "group"}),
    }


class Recorder(Conditioner):
    """Notes who is evaluated."""

    name = "recorder"
    notes: list[tuple[str, int]] = []  # noqa: RUF012

    def wants(self, request, parameters):
        return True

    def condition(self, evaluation, parameters):
        self.notes += {("step", row.sample.seed) for row in evaluation.rows}
        self.notes.append(("evaluation", 0))


class Plugin:
    darkroom_api_version = 1

    @hookimpl
    def darkroom_conditioners(self):
        return [Recorder()]


def save_rounded(folder: Path, kind: str) -> Path:
    """The tiny model with the UNet's weights as this option keeps them, in single precision."""
    save_sd(folder)
    unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet").requires_grad_(False)
    if kind == "cast":
        unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    else:
        quantise(unet, kind, torch.device("cpu"))
    weights = {
        name: each.dequantize() if hasattr(each, "dequantize") and type(each) is not torch.Tensor else each.float()
        for name, each in unet.state_dict().items()
    }
    plain = UNet2DConditionModel.from_pretrained(folder / "unet")
    plain.load_state_dict(weights)
    plain.save_pretrained(folder / "unet")
    return folder


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One folder under many names: `plain`, and one for each of the options."""
    folder = tmp_path_factory.mktemp("offload")
    same = {name for name, _ in OPTIONS.values()} - {"plain"}
    models = [{"name": "plain", "path": tiny_model}, {"name": "compiled", "path": tiny_model, "compile": True}]
    models += [{"name": name, "path": save_rounded(folder / name, name.removeprefix("rounded-"))} for name in same]
    models += [{"name": name, "path": tiny_model, **options} for name, (_, options) in OPTIONS.items()]
    compile_ = torch.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_checks, "has_own_memory", lambda device: True)  # the CPU stands for a device
        # All but the making of machine code, which takes minutes.
        patch.setattr(torch, "compile", lambda function, **options: compile_(function, backend="eager", **options))
        patch.setattr("darkroom_server.networks.compiled.compile_elsewhere", lambda *_: None)
        with RunningServer(
            plugins={"recorder": Plugin()},
            models=models,
            controlnets=[{"name": "net", "path": save_controlnet(folder / "net", tiny_model, seed=1)}],
            loras=[{"name": "lora", "path": save_lora(folder / "lora.safetensors", tiny_model, 2)}],
        ) as running:
            yield running
        while is_compiling():  # its thread would abort the process at the end
            time.sleep(0.01)


def swaps(server: RunningServer, name: str = "model") -> int:
    return server.app.catalog.models[name].placement.swaps


def together(server: RunningServer, requests: list[Any]) -> list[Stream]:
    """The streams of requests that the engine gets between two ticks."""
    return [stream.read() for stream in server.together(requests)]


def everything(server: RunningServer, model: str) -> list[np.ndarray]:
    """The pictures of four concurrent requests of different kinds."""
    picture = png(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    common = {"model": model, "seed": 5, "num_inference_steps": 8, "guidance_scale": 4.0}
    requests = [
        generate_request(prompt="a circle", scheduler="euler", loras=[LoraSpec(name="lora", weight=0.8)], **common),
        generate_request(
            prompt="a star", scheduler="dpmpp-2m", controls=[ControlSpec(model="net", image=picture)], **common
        ),
        edit_request(prompt="a ring", image=picture, image_to_image=ImageToImage(strength=0.7), **common),
        generate_request(prompt="a square", num_images=2, **common),
    ]
    streams = [server.start(request) for request in requests]
    return [stream.read().pixels for stream in streams]


@pytest.fixture(scope="module")
def expected(server: RunningServer) -> dict[str, list[np.ndarray]]:
    return {name: everything(server, name) for name in {name for name, _ in OPTIONS.values()}}


@pytest.mark.parametrize("name", OPTIONS)
def test_makes_the_pictures_of_the_model_without(
    name: str, server: RunningServer, expected: dict[str, list[np.ndarray]]
) -> None:
    like, _ = OPTIONS[name]
    for picture, other in zip(everything(server, name), expected[like], strict=True):
        assert np.abs(picture - other).max() <= 1
    if like != "plain":
        assert max(np.abs(a - b).max() for a, b in zip(expected[like], expected["plain"], strict=True)) > 1


def test_says_what_is_approximate(server: RunningServer) -> None:
    for model, sentences in (("plain", []), ("cast", ["The weights of the denoiser are rounded to float8_e4m3fn."])):
        completed = server.generate(prompt="x", num_inference_steps=1, model=model).of("completed")[0]
        assert list(completed.approximations) == sentences


def test_compiled_code_does_not_lose_loras(server: RunningServer) -> None:
    request = {"prompt": "x", "seed": 3, "num_inference_steps": 2}
    lora = {"loras": [LoraSpec(name="lora", weight=0.8)]}
    for given in ({}, lora, {}):
        ours, plain = (server.generate(**request, **given, model=model).pixels for model in ("compiled", "plain"))
        assert np.abs(ours - plain).max() <= 1
    assert np.abs(server.generate(**request, **lora, model="plain").pixels - plain).max() > 8


def test_jobs_share_swaps(server: RunningServer) -> None:
    """Each alone would take three: text encoder, denoiser, VAE."""
    requests = [
        generate_request(prompt=f"x{n}", seed=n, model="model", num_inference_steps=steps)
        for n, steps in enumerate((3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 15, 16))
    ]
    before = swaps(server)
    streams = together(server, requests)
    assert all(stream.kinds[-1] == "completed" for stream in streams)
    turns = 1 + math.ceil(16 / MAX_EVALUATIONS)
    assert swaps(server) - before <= 3 * turns


def test_pictures_of_edits_are_encoded_after_all_prompts(server: RunningServer) -> None:
    picture = png(np.zeros((32, 32, 3), np.uint8))
    requests = [
        edit_request(
            prompt=f"y{n}",
            image=picture,
            image_to_image=ImageToImage(strength=0.5),
            model="model",
            num_inference_steps=4,
        )
        for n in range(4)
    ]
    before = swaps(server)
    together(server, requests)
    assert swaps(server) - before <= 4  # text encoder, VAE, denoiser, VAE


@pytest.mark.parametrize("steps", [3, 11])
def test_nothing_waits_longer_than_the_bound(server: RunningServer, steps: int, monkeypatch) -> None:
    notes, family = Recorder.notes, server.app.catalog.models["model"].family
    notes.clear()
    decode = family.decode
    monkeypatch.setattr(family, "decode", lambda latents: (notes.append(("decode", 0)), decode(latents))[1])
    common = {"model": "model", "preview": PreviewOptions(mode=PREVIEW_MODE_OFF)}
    long = server.start(generate_request(prompt="long", seed=1, num_inference_steps=60, **common))
    long.read_until("step")
    server.generate(prompt="short", seed=2, num_inference_steps=steps, **common)
    assert len(long.read().of("step")) == 60
    last = max(index for index, note in enumerate(notes) if note == ("step", 2))
    waited = notes[last : notes.index(("decode", 0), last)].count(("evaluation", 0))
    assert 1 <= waited <= MAX_EVALUATIONS  # the first is its own


@pytest.mark.slow
def test_previews_by_the_vae_share_its_turns(server: RunningServer) -> None:
    before, steps = swaps(server), 20
    preview = PreviewOptions(mode=PREVIEW_MODE_FULL_VAE)
    request = {"prompt": "z", "seed": 1, "scheduler": "euler", "num_inference_steps": steps}
    stream = server.generate(**request, model="model", preview=preview)
    shown = [each.step for each in stream.of("preview")]
    assert shown == [MAX_EVALUATIONS, 2 * MAX_EVALUATIONS]
    assert swaps(server) - before <= 3 + 2 * len(shown)
