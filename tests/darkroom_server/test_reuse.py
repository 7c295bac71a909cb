"""Feature reuse: what the inner layers of the denoiser made serves several evaluations."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import nn

from darkroom_demo import MODEL_PATH
from darkroom_plugins.builtin.families import deepcache
from darkroom_plugins.builtin.families.deepcache_layers import Layers
from tests.support import RunningServer, generate_request
from tests.tiny_sdxl import save_sdxl

MAX_LEVELS = 1
ASKED: dict[str, Any] = {"prompt": "a fox", "seed": 3, "num_inference_steps": 7, "guidance_scale": 5.0}
SAID = "The inner layers of the denoiser run only every 3 evaluations."


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Path]:
    return {"tiny": tiny_model, "xl": save_sdxl(tmp_path_factory.mktemp("reuse") / "xl"), "shapes": MODEL_PATH}


@pytest.fixture(scope="module")
def reusing(folders: dict[str, Path]) -> Iterator[RunningServer]:
    with RunningServer(models=[{"name": name, "path": path} for name, path in folders.items()]) as server:
        yield server


def expected(folder: Path, interval: int, scheduler: Any, **asked: Any) -> Any:
    """The picture that diffusers' pipeline makes when, but for every so many evaluations, the outer layers of its whole
    UNet are given the features of the last whole evaluation."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    first = pipe.unet.up_blocks[-1].resnets[-deepcache.DEPTH - 1]
    skipped = pipe.unet.down_blocks[0].resnets[deepcache.DEPTH - 1]
    width, calls, kept = first.conv1.in_channels - skipped.conv2.out_channels, 0, torch.empty(0)

    def swap(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        nonlocal calls, kept
        hidden = inputs[0]
        if calls % interval == 0:
            kept = hidden[:, :width].clone()
        calls += 1
        return torch.cat([kept, hidden[:, width:]], dim=1), *inputs[1:]

    first.register_forward_pre_hook(swap)
    prompt = asked.pop("prompt")
    generator = [torch.Generator().manual_seed(asked.pop("seed"))]
    return np.asarray(pipe(prompt, generator=generator, **asked).images[0], dtype=int)


@pytest.mark.parametrize("model", ["tiny", "xl", "shapes"])
@pytest.mark.parametrize("scheduler", [diffusers.EulerDiscreteScheduler, diffusers.HeunDiscreteScheduler])
def test_equals_diffusers_with_the_same_features(
    model: str, scheduler: Any, reusing: RunningServer, folders: dict[str, Path]
) -> None:
    name = {"EulerDiscreteScheduler": "euler", "HeunDiscreteScheduler": "heun"}[scheduler.__name__]
    asked = {**ASKED, "model": model, "scheduler": name}
    made, whole = reusing.generate(**asked, cache_interval=3), reusing.generate(**asked)
    wanted = expected(folders[model], 3, scheduler, **ASKED)
    assert np.abs(made.pixels[0] - wanted).max() <= MAX_LEVELS
    assert np.abs(made.pixels - whole.pixels).max() > MAX_LEVELS
    assert list(made.of("completed")[0].approximations) == [SAID]
    assert not whole.of("completed")[0].approximations
    assert made.of("accepted")[0].parameters.cache_interval == 3


def test_others_of_the_batch_may_reuse_or_not(reusing: RunningServer) -> None:
    """With guidance for a part of the steps, a row may come without features."""
    asked = [
        {**ASKED, "model": "tiny", "seed": seed, "cache_interval": interval, "guidance_start": start}
        for seed, (interval, start) in enumerate([(1, 0.0), (2, 0.0), (3, 0.4), (20, 0.0), (1, 0.5)])
    ]
    alone = [reusing.generate(**each).pixels for each in asked]
    together = [reusing.start(generate_request(**each)) for each in asked]
    for stream, pixels in zip(together, alone, strict=True):
        assert np.abs(stream.read().pixels - pixels).max() <= MAX_LEVELS


def test_a_model_says_how_far_it_goes(reusing: RunningServer) -> None:
    from darkroom.v1 import catalog_service_pb2

    listed = reusing.catalog.ListModels(catalog_service_pb2.ListModelsRequest()).models
    assert {model.max_cache_interval for model in listed} == {deepcache.MAX_INTERVAL}


def test_the_network_is_left_as_it_was(tiny_model: Path) -> None:
    """Also where an evaluation fails."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(tiny_model / "unet")
    before = list(unet.named_modules())
    layers = Layers(unet, deepcache.DEPTH)
    with pytest.raises(RuntimeError):
        layers.full_step(unet, torch.zeros(1, 99, 8, 8), 1, torch.zeros(1, 2, 32))
    assert list(unet.named_modules()) == before
