"""A conditioner of others that adds residuals beside a ControlNet, whatever their names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from darkroom.v1 import parameters_pb2
from darkroom_plugins import Conditioner, hookimpl
from darkroom_plugins.builtin.families.sd import StableDiffusion
from tests.support import RunningServer, png

NAMES = ("a-bias", "z-bias")  # before and after "controlnet"


class Bias(Conditioner):
    """Adds to the middle block where the negative prompt is its name."""

    def __init__(self, name: str) -> None:
        self.name = name  # type: ignore[misc]

    def wants(self, request: Any, parameters: Any) -> bool:
        return bool(self.name == request.negative_prompt)

    def condition(self, evaluation: Any, parameters: Any) -> None:
        *skips, mid = map(evaluation.latents.new_zeros, evaluation.residual_shapes)
        evaluation.add_residuals([*skips, mid + 3])


class Plugin:
    darkroom_api_version = 1

    @hookimpl
    def darkroom_conditioners(self) -> list[Any]:
        return [Bias(name) for name in NAMES]


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    with RunningServer(
        plugins={"bias": Plugin()},
        models=[{"name": "sd", "path": folder / "sd"}],
        controlnets=[{"name": "edges", "path": folder / "sd-edges"}],
    ) as running:
        yield running


def picture(server: RunningServer, bias: str = "", controls: int = 0) -> np.ndarray:
    """One at guidance 1, so that the negative prompt does nothing but name a conditioner."""
    image = png(np.indices((32, 32)).sum(0).astype(np.uint8)[..., None].repeat(3, axis=-1) * 4)
    control = parameters_pb2.ControlSpec(model="edges", image=image)
    return server.generate(
        prompt="a fox",
        negative_prompt=bias,
        guidance_scale=1.0,
        num_inference_steps=4,
        scheduler="ddim",
        seed=3,
        deterministic=True,
        controls=[control] * controls,
    ).pixels


def test_residuals_compose_with_a_controlnets(server: RunningServer) -> None:
    plain, controlled = picture(server), picture(server, controls=1)
    before, after = (picture(server, name, controls=1) for name in NAMES)
    assert np.array_equal(before, after)
    for other in (plain, controlled, picture(server, NAMES[0])):
        assert np.abs(before.astype(int) - other).max() > 2


def test_the_shapes_are_those_of_the_networks_own_outputs(folder: Path, server: RunningServer) -> None:
    """Of a ControlNet for this model, at a size that no factor of two divides."""
    import torch
    from diffusers import ControlNetModel

    model = server.app.catalog.models["sd"].family
    assert isinstance(model, StableDiffusion)
    network = ControlNetModel.from_pretrained(folder / "sd-edges")
    latents, prompt = torch.zeros(1, 4, 14, 10), torch.zeros(1, 77, 32)
    with torch.no_grad():
        down, mid = network(latents, 1, prompt, torch.zeros(1, 3, 28, 20), return_dict=False)
    assert [tuple(each.shape[1:]) for each in (*down, mid)] == model.residual_shapes(14, 10)
