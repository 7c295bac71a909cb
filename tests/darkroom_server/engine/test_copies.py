"""Copies to the device are few: on CUDA each costs as much as an operation of the denoiser."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from darkroom.v1.parameters_pb2 import ControlSpec, LoraSpec
from darkroom_plugins import tensors
from darkroom_plugins.tensors import constant
from tests.support import RunningServer, generate_request, png
from tests.tiny import save_controlnet, save_lora


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How many there were, by elements."""
    found: Counter[int] = Counter()
    to_device = tensors.to_device

    def counting(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        found[tensor.numel()] += 1
        return to_device(tensor, device)

    for module in list(sys.modules.values()):
        if vars(module).get("to_device") is to_device:
            monkeypatch.setattr(module, "to_device", counting)
    return found


def test_an_evaluation_copies_timesteps_coefficients_and_noise(
    tiny_model: Path, tmp_path: Path, copies: Counter[int]
) -> None:
    net = save_controlnet(tmp_path / "net", tiny_model, seed=1)
    lora = save_lora(tmp_path / "lora.safetensors", tiny_model, 2)
    control = ControlSpec(model="net", image=png(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)))
    made = []
    with RunningServer(
        models=[{"name": "tiny", "path": tiny_model}],
        controlnets=[{"name": "net", "path": net}],
        loras=[{"name": "lora", "path": lora}],
    ) as server:
        for steps in (4, 4, 10):
            plain = {"prompt": "x", "guidance_scale": 4.0, "num_inference_steps": steps}
            requests = [
                generate_request(**plain, scheduler="euler-ancestral"),
                generate_request(**plain, scheduler="ddim", controls=[control]),
                generate_request(**plain, scheduler="euler", loras=[LoraSpec(name="lora", weight=0.8)]),
            ]
            copies.clear()
            for stream in server.together(requests):
                assert {step.batch_rows for step in stream.read().of("step")} == {6}
            made.append(copies.total())
    assert made[2] - made[1] == 6 * 3


def test_equal_numbers_of_other_types_are_kept_apart() -> None:
    cpu = torch.device("cpu")
    whole, real = constant([1, 2], cpu), constant([1.0, 2.0], cpu)
    assert (whole.dtype, real.dtype) == (torch.int64, torch.float32)
    assert constant((1, 2), cpu) is whole
    assert not whole.is_inference()
