"""Recorded evaluations: replayed on the tensors of the recording, for calls of its kind, and gone with the model."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakSet

import numpy as np
import pytest
import torch
from torch import nn

from darkroom.v1 import catalog_service_pb2 as catalog_pb
from darkroom.v1.parameters_pb2 import ControlSpec, LoraSpec
from darkroom_server.networks import graphs
from darkroom_server.networks.compiled import eagerly
from darkroom_server.networks.tensors import mapped
from tests.support import RunningServer, generate_request, png
from tests.tiny import save_controlnet, save_lora

REQUEST = {"prompt": "x", "seed": 3, "num_inference_steps": 5, "guidance_scale": 4.0, "scheduler": "euler"}


class StandIn:
    """Stands for a CUDA graph: recording computes nothing; a replay reads and writes the tensors of the recording."""

    alive: ClassVar[WeakSet["StandIn"]] = WeakSet()
    replays: ClassVar[list["StandIn"]] = []

    def __init__(self, run: Callable[[], Any]) -> None:
        self._run, self.output = run, run()
        mapped(self.output, lambda tensor: tensor.fill_(torch.nan))
        StandIn.alive.add(self)

    def replay(self) -> None:
        made: list[torch.Tensor] = []
        mapped(self._run(), made.append)
        mapped(self.output, lambda tensor: tensor.copy_(made.pop(0)))
        StandIn.replays.append(self)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor, more: Any = None, plus: float = 0.0) -> Any:
        assert not torch.isnan(latents).any()
        added = sum(more["list"]) if more else 0.0
        return (self.conv(latents) * timestep.view(-1, 1, 1, 1) + added + plus,)


@pytest.fixture
def network() -> Network:
    StandIn.replays.clear()
    made = Network()
    made.forward = graphs.graphed(made, StandIn)  # type: ignore[method-assign]
    return made


def call(rows: int = 2, edge: int = 4, **more: Any) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    return (torch.randn(rows, 1, edge, edge), torch.randn(rows)), more


def check(network: Network, arguments: tuple[tuple[torch.Tensor, ...], dict[str, Any]]) -> torch.Tensor:
    args, kwargs = arguments
    (output,) = network(*args, **kwargs)
    assert torch.equal(output, Network.forward(network, *args, **kwargs)[0])
    return output  # type: ignore[no-any-return]


@torch.inference_mode()
def test_a_kind_of_call_is_recorded_the_second_time(network: Network) -> None:
    outputs = [check(network, call()) for _ in range(4)]
    kept = [output.clone() for output in outputs]
    check(network, call())
    assert len(StandIn.replays) == 4
    assert len(set(StandIn.replays)) == 1
    assert all(map(torch.equal, outputs, kept))  # no replay writes into what an earlier one gave


@torch.inference_mode()
def test_kinds_of_calls_are_told_apart(network: Network) -> None:
    tensors = {"list": [torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)]}
    turned = torch.randn(4, 4, 1, 2).permute(3, 2, 1, 0), torch.randn(2)
    kinds = [call(), call(3), call(edge=5), call(plus=1.0), call(more=tensors), (turned, {})]
    for arguments in kinds * 3:
        check(network, arguments)
    assert len(set(StandIn.replays)) == len(kinds)
    tensors["list"] = [torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)]
    check(network, call(more=tensors))


@torch.inference_mode()
def test_patched_deterministic_and_large_calls_run_eagerly(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        check(network, call())
    StandIn.replays.clear()
    hook = network.conv.register_forward_hook(lambda module, args, output: output + 1)
    check(network, call())
    hook.remove()
    own, network.conv = network.conv, nn.Conv2d(1, 1, 3, padding=1)
    check(network, call())
    network.conv = own
    with eagerly():
        check(network, call())
    monkeypatch.setattr(graphs, "MAX_POSITIONS", 31)
    check(network, call())
    assert not StandIn.replays
    monkeypatch.setattr(graphs, "MAX_POSITIONS", 32)
    check(network, call())
    assert len(StandIn.replays) == 1


@torch.inference_mode()
def test_the_least_used_kinds_are_forgotten(network: Network) -> None:
    for rows in range(1, graphs.MOST + 3):
        for _ in range(2):
            check(network, call(rows, 1))
    StandIn.replays.clear()
    gc.collect()
    assert len(StandIn.alive) == graphs.MOST
    check(network, call(1, 1))
    assert not StandIn.replays
    check(network, call(graphs.MOST + 2, 1))
    assert StandIn.replays


@torch.inference_mode()
def test_what_cannot_be_recorded_runs_eagerly(caplog: pytest.LogCaptureFixture) -> None:
    tries = []

    def refusing(run: Callable[[], Any]) -> StandIn:
        tries.append(run)
        raise torch.cuda.OutOfMemoryError

    network = Network()
    network.forward = graphs.graphed(network, refusing)  # type: ignore[method-assign]
    for _ in range(4):
        check(network, call())
    assert len(tries) == 1
    assert "it runs eagerly" in caplog.text


def test_pictures_are_those_of_the_plain_model(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone and together, with what patches the denoiser in between, and after the weights have come anew."""
    monkeypatch.setattr(graphs, "recorder", lambda device: StandIn)
    net, lora = (
        save_controlnet(tmp_path / "net", tiny_model, 1),
        save_lora(tmp_path / "lora.safetensors", tiny_model, 2),
    )
    picture = png(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    kinds: list[dict[str, Any]] = [
        {},
        {"guidance_scale": 1.0},
        {"num_images": 2, "seed": 5},
        {"loras": [LoraSpec(name="lora", weight=0.8)]},
        {"controls": [ControlSpec(model="net", image=picture)]},
        {"cache_interval": 2},
        {"width": 48},
    ]
    models = [{"name": "graphs", "path": tiny_model, "cuda_graphs": True}, {"name": "plain", "path": tiny_model}]
    adapters = {"controlnets": [{"name": "net", "path": net}], "loras": [{"name": "lora", "path": lora}]}
    with RunningServer(models=models, **adapters) as server:
        expected = [server.generate(**REQUEST | more, model="plain") for more in kinds]
        for _ in range(2):
            StandIn.replays.clear()
            made = [server.generate(**REQUEST | more) for more in kinds]
            assert len(set(StandIn.replays)) >= 5  # all kinds but the LoRA's and the cached layers'
            requests = [generate_request(**REQUEST | more) for more in kinds]
            made += [stream.read() for stream in server.together(requests)]
            for each, plain in zip(made, expected * 2, strict=True):
                assert max(np.abs(a - b).max() for a, b in zip(each.pixels, plain.pixels, strict=True)) <= 1
            StandIn.replays.clear()
            server.catalog.UnloadModel(catalog_pb.UnloadModelRequest(model="graphs"))
            assert not StandIn.alive
