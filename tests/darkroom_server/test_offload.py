"""Memory options with everything at once: step batching, LoRAs, ControlNets and edits, beside a model without any."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from darkroom.v1.edits_pb2 import ImageToImage
from darkroom.v1.parameters_pb2 import ControlSpec, LoraSpec
from darkroom_server import check_memory
from tests.support import RunningServer, edit_request, generate_request, png
from tests.tiny import save_controlnet, save_lora

EXACT = {
    "model": {"offload": "model"},
    "sequential": {"offload": "sequential"},
    "group": {"offload": "group"},
    "sliced": {"attention_slicing": "auto", "vae_slicing": True, "vae_tiling": True},
    "math": {"attention_backend": "_native_math"},
    "compiled": {"compile": True},
}
CLOSE = {
    "cast": {"layerwise_casting": "float8_e4m3fn"},
    "cast-model": {"layerwise_casting": "float8_e4m3fn", "offload": "model"},
    "cast-group": {"layerwise_casting": "float8_e4m3fn", "offload": "group"},
}
QUANTISED = {
    "int8": {"quantize": "int8"},
    "int8-model": {"quantize": "int8", "offload": "model"},
    "float8-group": {"quantize": "float8", "offload": "group"},
}
OPTIONS = {**EXACT, **CLOSE, **(QUANTISED if find_spec("torchao") else {})}


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One folder under many names: `plain`, and one for each of the options."""
    folder = tmp_path_factory.mktemp("offload")
    models = [{"name": "plain", "path": tiny_model}]
    models += [{"name": name, "path": tiny_model, **options} for name, options in OPTIONS.items()]
    compile_ = torch.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check_memory, "has_own_memory", lambda device: True)  # the CPU stands for a device
        # All but the making of machine code, which takes minutes.
        patch.setattr(torch, "compile", lambda function, **options: compile_(function, backend="eager", **options))
        with RunningServer(
            models=models,
            controlnets=[{"name": "net", "path": save_controlnet(folder / "net", tiny_model, seed=1)}],
            loras=[{"name": "lora", "path": save_lora(folder / "lora.safetensors", tiny_model, 2)}],
        ) as running:
            yield running


def swaps(server: RunningServer, name: str) -> int:
    assert server.app.images is not None
    return server.app.images._catalog.models[name].placement.swaps


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
def plain(server: RunningServer) -> list[np.ndarray]:
    return everything(server, "plain")


@pytest.mark.parametrize("name", OPTIONS)
def test_equals_the_model_without(name: str, server: RunningServer, plain: list[np.ndarray]) -> None:
    differences = [np.abs(a - b) for a, b in zip(everything(server, name), plain, strict=True)]
    if name in EXACT:
        assert max(each.max() for each in differences) <= 1
    else:
        print(name, [(each.mean(), each.max()) for each in differences])
        assert max(each.mean() for each in differences) < 16
