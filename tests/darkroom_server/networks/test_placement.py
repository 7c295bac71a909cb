"""Where networks and their weights are, how much memory that takes, and what is refused at the start."""

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from darkroom_plugins.builtin.families.sd import StableDiffusion
from darkroom_plugins.files import ModelFiles
from darkroom_server.config.settings import MemoryOptions
from darkroom_server.device.pinned import BLOCK_BYTES
from darkroom_server.models.holdings import load
from darkroom_server.models.model import ModelError
from darkroom_server.networks import memory_checks
from darkroom_server.networks.memory_checks import check
from darkroom_server.networks.placement import Placement
from darkroom_server.networks.sizes import device_bytes
from tests.support import RunningServer
from tests.tiny import unet

CPU, META = torch.device("cpu"), torch.device("meta")
needs_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="run by test_quantized.py, with torchao")


def opened(folder: Path) -> Any:
    return StableDiffusion.open(ModelFiles(folder), CPU, torch.float32)


def nbytes(network: nn.Module) -> int:
    """Of the weights; a quantised tensor is made of others."""
    sizes = 0
    for weights in network.parameters():
        parts = weights.__tensor_flatten__()[0] if hasattr(weights, "__tensor_flatten__") else []
        sizes += sum(getattr(weights, part).nbytes for part in parts) if parts else weights.nbytes
    return sizes


def devices(network: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in (*network.parameters(), *network.buffers())}


def two_networks() -> tuple[Placement, nn.Module, nn.Module]:
    """Under offload from the CPU to a device without memory, on which each of its tensors can be told from others."""
    placement = Placement("model")
    networks = [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).requires_grad_(False).eval() for _ in range(2)]
    for network in networks:
        placement.manage(network, META)
    return placement, *networks


def test_one_network_is_on_the_device_at_a_time() -> None:
    placement, first, second = two_networks()
    weights = copy.deepcopy(first.state_dict())
    assert placement.swapping
    assert devices(first) == devices(second) == {"cpu"}
    for _ in range(2):
        assert first(torch.ones(2, 4, device=META)).is_meta
    assert (devices(first), devices(second), placement.swaps) == ({"meta"}, {"cpu"}, 1)
    second(torch.ones(2, 4, device=META))
    assert (devices(first), devices(second), placement.swaps) == ({"cpu"}, {"meta"}, 2)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_offloaded_weights_of_a_gpu_are_kept_in_blocks_of_pinned_memory() -> None:
    """That they are pinned there is tested in test_gpu.py."""
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    placement = Placement("model")
    placement.manage(network, torch.device("cuda"))
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert {tensor.untyped_storage().nbytes() for tensor in network.state_dict().values()} == {BLOCK_BYTES}
    for table, name, kept in placement.weights[network]:
        assert table[name] is kept
        assert isinstance(kept, nn.Parameter) is (table is not network[1]._buffers)


def test_a_network_that_does_not_fit_leaves_nothing_behind() -> None:
    placement, first, second = two_networks()
    first(torch.ones(2, 4, device=META))

    class Full(torch.Tensor):
        def to(self, device):
            if device == META:
                raise torch.OutOfMemoryError("no")
            return self

    table, name, kept = placement.weights[second][-2]
    placement.weights[second][-2] = (table, name, kept.as_subclass(Full))
    with pytest.raises(torch.OutOfMemoryError):
        second(torch.ones(2, 4, device=META))
    assert devices(first) == devices(second) == {"cpu"}
    placement.weights[second][-2] = (table, name, kept)
    assert second(torch.ones(2, 4, device=META)).is_meta


def test_device_bytes_are_those_of_the_weights(tiny_model: Path) -> None:
    family = opened(tiny_model)
    load(family, ModelFiles(tiny_model))
    sizes = {name: nbytes(network) for name, network in family.components.items()}
    layers = [
        sum(p.nbytes for p in m.parameters(recurse=False)) for n in family.components.values() for m in n.modules()
    ]
    assert device_bytes(family, MemoryOptions()) == sum(sizes.values()) == family.weight_bytes
    assert device_bytes(family, MemoryOptions(offload="model")) == max(sizes.values())
    assert device_bytes(family, MemoryOptions(offload="sequential")) == max(layers)
    assert max(layers) < device_bytes(family, MemoryOptions(offload="group")) <= 2 * max(layers)


@pytest.mark.parametrize(
    "options",
    [
        {"layerwise_casting": "float8_e5m2"},
        pytest.param({"quantize": "int8"}, marks=needs_torchao, id="int8"),
        pytest.param({"quantize": "float8"}, marks=needs_torchao, id="float8"),
    ],
)
def test_device_bytes_of_smaller_weights(options: dict[str, Any], tiny_model: Path) -> None:
    family, given = opened(tiny_model), MemoryOptions(**options)
    load(family, ModelFiles(tiny_model), given)
    taken = sum(map(nbytes, family.components.values()))
    assert taken <= device_bytes(family, given) <= 1.05 * taken
    assert taken < 0.9 * family.weight_bytes


REFUSED: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"offload": "model"}, {"offload": "no memory of its own"}),
    ({"attention_slicing": 9}, {"attention_slicing": "at most 4"}),
    ({"attention_backend": "sage"}, {"attention_backend": "one of native, _native_cudnn, _native_efficient, "}),
    ({"attention_backend": "_native_efficient"}, {"attention_backend": "does not work here"}),
    ({"attention_backend": "native", "attention_slicing": 2}, {"attention_backend": "sliced attention"}),
    ({"compile": True, "offload": "sequential"}, {"compile": "layer by layer", "offload": "no memory"}),
    ({"compile": True, "layerwise_casting": "float8_e4m3fn"}, {"compile": "layerwise_casting"}),
    ({"cuda_graphs": True, "offload": "model"}, {"cuda_graphs": "which offload model moves", "offload": ""}),
    ({"cuda_graphs": True}, {"cuda_graphs": "cpu is no CUDA device"}),
    ({"cuda_graphs": True, "compile": True}, {"cuda_graphs": "this or compile"}),
    ({"compile": True, "attention_backend": "native"}, {"attention_backend": "compiled code"}),
    (
        {"quantize": "int4", "layerwise_casting": "float8_e5m2", "offload": "sequential", "attention_slicing": 5},
        {"layerwise_casting": "quantize", "attention_slicing": "at most 4", "quantize": "", "offload": "quantised"},
    ),
]


@pytest.mark.parametrize(("options", "reasons"), REFUSED)
def test_says_all_that_is_impossible(
    options: dict[str, Any], reasons: dict[str, str], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: function)
    found = check(MemoryOptions(**options), opened(tiny_model))
    assert {problem.partition(":")[0] for problem in found} == set(reasons)
    for option, reason in reasons.items():
        assert any(problem.startswith(f"{option}: ") and reason in problem for problem in found)


def test_refuses_a_compiler_that_crashes(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's build for CUDA does without a GPU: not even a trial is made."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "compile", None)
    (problem,) = check(MemoryOptions(compile=True), opened(tiny_model))
    assert "without a GPU" in problem


def test_refuses_what_the_networks_lack(tiny_model: Path) -> None:
    family = opened(tiny_model)
    family.meta_components = {"text_encoder": family.meta_components["text_encoder"]}
    options = MemoryOptions(attention_slicing="max", vae_slicing=True, vae_tiling=True)
    assert [problem.partition(":")[0] for problem in check(options, family)] == [
        "attention_slicing",
        "vae_slicing",
        "vae_tiling",
    ]
    family.meta_components = {"unet": unet(attention_head_dim=1)}  # so many heads, as diffusers calls it
    assert "single head" in check(MemoryOptions(attention_slicing="auto"), family)[0]
    assert not check(MemoryOptions(attention_slicing="max"), family)


def test_a_server_does_not_start_with_what_is_impossible(tiny_model: Path) -> None:
    model = {"name": "tiny", "path": tiny_model, "offload": "group", "attention_slicing": 7}
    with pytest.raises(ModelError, match=r"model 'tiny': attention_slicing: .*; offload: cpu has no memory"):
        RunningServer(models=[model]).__enter__()


@needs_torchao
def test_quantised_weights_need_a_kind_that_works_here(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_checks, "has_own_memory", lambda device: True)
    for kind in ("int8", "float8"):
        assert not check(MemoryOptions(quantize=kind, offload="model"), opened(tiny_model))
    (problem,) = check(MemoryOptions(quantize="float8-dynamic"), opened(tiny_model))
    assert problem.startswith("quantize: does not work here: ")
    assert "8.9" in problem


@pytest.mark.skipif(find_spec("torchao") is not None, reason="torchao is there")
def test_says_that_torchao_is_missing(tiny_model: Path) -> None:
    assert check(MemoryOptions(quantize="int8"), opened(tiny_model)) == ["quantize: needs torchao"]
