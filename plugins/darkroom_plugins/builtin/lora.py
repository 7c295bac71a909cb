"""LoRAs: low-rank changes of a model's layers (Hu et al. 2021), a different set of them for each row of a batch."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import nn

from darkroom_plugins import hookimpl
from darkroom_plugins.contract import Adapter, AssetInfo, AssetKind, Assets, Family
from darkroom_plugins.files import LOADING
from darkroom_plugins.request import Request
from darkroom_plugins.sample import Evaluation, Sample
from darkroom_plugins.tensors import to_device

darkroom_api_version = 1

KEPT_SETS = 16
# How diffusers, kohya and PEFT name the first matrix of a layer, and the networks.
DOWN = re.compile(r"(lora_A|down)\.weight$")
KNOWN = re.compile(r"(lora_[AB]|[._](down|up))\.weight$|\.alpha$")
CROSS_ATTENTION = re.compile(r"attn2[._].*to_k.*(lora_A|down)\.weight$")
PREFIXES = {
    "unet": ("unet.", "lora_unet_"),
    "text_encoder": ("text_encoder.", "lora_te_", "lora_te1_"),
    "text_encoder_2": ("text_encoder_2.", "lora_te2_"),
}

Weights: TypeAlias = tuple[tuple[str, float], ...]  # a set of LoRAs: names with their weights


@dataclass(frozen=True, slots=True)
class LowRank:
    """What is added to a layer: up(down(x))."""

    down: torch.Tensor  # (rank, in) for linear layers, (rank, in, h, w) for convolutions
    up: torch.Tensor  # (out, rank) or (out, rank, 1, 1), weight and alpha / rank folded in

    def __call__(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if isinstance(layer, nn.Conv2d):
            inner = nn.functional.conv2d(x, self.down, None, layer.stride, layer.padding, layer.dilation, layer.groups)
            return nn.functional.conv2d(inner, self.up)
        return nn.functional.linear(nn.functional.linear(x, self.down), self.up)


LayerChanges: TypeAlias = Mapping[str, LowRank]  # by the layer's name in its component
Changes: TypeAlias = Mapping[str, LayerChanges]  # by the component's name


class Loras(Adapter):
    """Adds each row's own set of LoRAs, by hooks on the layers that live as long as an evaluation: the model itself is
    never changed. A set is one low-rank change, of which the matrices are those of its LoRAs side by side."""

    name = "lora"
    description = "Adds LoRAs, each with a weight; every picture of a batch may have others."
    asset_kind: AssetKind = "lora"  # type: ignore[misc]

    def __init__(self) -> None:
        self._sets: OrderedDict[Hashable, Changes] = OrderedDict()

    def wants(self, request: Request, parameters: None) -> bool:
        return bool(_weights(request))

    def prompt_key(self, request: Request, parameters: None) -> Hashable:
        return _weights(request)

    def describe_asset(self, path: Path) -> AssetInfo:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
        if not any(DOWN.search(name) for name in names):
            raise ValueError("it has no LoRA's matrices")
        prefixes = tuple(prefix for each in PREFIXES.values() for prefix in each)
        for name in names:
            if not KNOWN.search(name) or not name.startswith(prefixes):
                raise ValueError(f"it has {name}, which is no LoRA's matrix of a UNet or a text encoder")
        components = [part for part, prefixes in PREFIXES.items() if any(n.startswith(prefixes) for n in names)]
        return AssetInfo(components=tuple(components), weight_bytes=path.stat().st_size)

    def incompatibility(self, path: Path, model: Family) -> str | None:
        if "unet" not in model.meta_components:
            return "it changes a UNet, which the model does not have"
        width = getattr(model.meta_components["unet"].config, "cross_attention_dim", None)
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                if CROSS_ATTENTION.search(name) and (theirs := file.get_slice(name).get_shape()[1]) != width:
                    return f"it was made for a model whose text embeddings have width {theirs}, not {width}"
        return None

    def load_asset(self, path: Path, model: Family) -> Changes:
        """Its matrices on the CPU, read by diffusers' own loader, which knows the formats.

        :raises ValueError: it has what cannot be applied: layers that the model lacks, DoRA, biases
        """
        state, alphas, metadata = model.pipeline_class.lora_state_dict(  # type: ignore[attr-defined]
            str(path),
            unet_config=model.meta_components["unet"].config,
            return_lora_metadata=True,
            use_safetensors=True,
            local_files_only=True,
        )
        with LOADING:
            found = {
                part: _read(model, part, state, alphas, metadata)
                for part in PREFIXES
                if any(name.startswith(f"{part}.") for name in state)
            }
        expected, read = sum(bool(DOWN.search(name)) for name in state), sum(map(len, found.values()))
        if read != expected or not read:
            raise ValueError(f"of its {expected} layers the model has {read}")
        return found

    @contextmanager
    def encoding(self, sample: Sample, parameters: None) -> Iterator[None]:
        changes = self._set(sample)
        with ExitStack() as hooks:
            for part in ("text_encoder", "text_encoder_2"):
                if part in changes:
                    _hook(hooks, sample.model.components[part], [(None, changes[part])])
            yield

    @contextmanager
    def applied(self, model: Family, evaluation: Evaluation, parameters: Sequence[None]) -> Iterator[None]:
        rows: dict[Weights, list[int]] = {}
        samples: dict[Weights, Sample] = {}
        for index, row in enumerate(evaluation.rows):
            if weights := _weights(row.sample.request):
                rows.setdefault(weights, []).append(index)
                samples[weights] = row.sample
        device = evaluation.latents.device
        groups = [
            (to_device(torch.tensor(indices), device) if len(indices) < len(evaluation.rows) else None, changes["unet"])
            for weights, indices in rows.items()
            if "unet" in (changes := self._set(samples[weights]))
        ]
        with ExitStack() as hooks:
            _hook(hooks, model.components["unet"], groups)
            yield

    def release(self) -> None:
        self._sets.clear()

    def _set(self, sample: Sample) -> Changes:
        """The LoRAs of a sample as one, on the model's device."""
        weights = _weights(sample.request)
        key = (id(sample.model), weights)
        found = self._sets.pop(key, None) or _stacked(weights, sample.assets, sample.model)
        self._sets[key] = found
        if len(self._sets) > KEPT_SETS:
            self._sets.popitem(last=False)
        return found


def _weights(request: Request) -> Weights:
    """The LoRAs that have an effect, in an order of their own, so that equal sets are equal."""
    return tuple(sorted((lora.name, lora.weight) for lora in request.loras if lora.weight != 0))


def _hook(hooks: ExitStack, network: nn.Module, groups: Sequence[tuple[torch.Tensor | None, LayerChanges]]) -> None:
    """Add each group's changes to its rows (None: to all) of each layer's output, until `hooks` are closed."""
    layers: dict[str, list[tuple[torch.Tensor | None, LowRank]]] = {}
    for rows, changes in groups:
        for name, change in changes.items():
            layers.setdefault(name, []).append((rows, change))
    for name, parts in layers.items():
        hooks.enter_context(_removing(network.get_submodule(name).register_forward_hook(_adding(parts))))


def _adding(parts: Sequence[tuple[torch.Tensor | None, LowRank]]) -> Callable[..., torch.Tensor]:
    def add(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        for rows, change in parts:
            if rows is None:
                output = output + change(layer, inputs[0])
            else:
                output = output.index_add(0, rows, change(layer, inputs[0][rows]))
        return output

    return add


@contextmanager
def _removing(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _read(model: Family, part: str, state: Any, alphas: Any, metadata: Any) -> LayerChanges:
    """The changes of one component, by having diffusers load them into a copy of it that has no weights."""
    empty = copy.deepcopy(model.meta_components[part]).to_empty(device="cpu")  # memory that is never touched
    load = getattr(model.pipeline_class, f"load_lora_into_{'unet' if part == 'unet' else 'text_encoder'}")  # type: ignore[attr-defined]
    more = {} if part == "unet" else {"prefix": part}
    load(dict(state), alphas, empty, adapter_name="it", metadata=metadata, low_cpu_mem_usage=True, **more)
    return {name: _low_rank(name, layer) for name, layer in empty.named_modules() if isinstance(layer, LoraLayer)}


def _low_rank(name: str, layer: Any) -> LowRank:
    down, up = layer.lora_A["it"], layer.lora_B["it"]
    if layer.use_dora["it"] or up.bias is not None or not isinstance(down, nn.Linear | nn.Conv2d):
        raise ValueError(f"it changes {name} in a way that cannot be applied row by row")
    with torch.no_grad():
        return LowRank(down.weight.detach().clone(), up.weight.detach() * layer.scaling["it"])


def _stacked(weights: Weights, assets: Assets, model: Family) -> Changes:
    """The sum of weighted LoRAs as one: its down matrices one above the other, its up matrices side by side."""
    loras: list[tuple[Changes, float]] = [(assets.get("lora", name), weight) for name, weight in weights]
    changes: dict[str, dict[str, LowRank]] = {}
    for part in PREFIXES:
        layers = {name for lora, _ in loras for name in lora.get(part, ())}
        for name in sorted(layers):
            parts = [(lora[part][name], weight) for lora, weight in loras if name in lora.get(part, ())]
            down = torch.cat([each.down for each, _ in parts])
            up = torch.cat([each.up * weight for each, weight in parts], dim=1)
            there = (to_device(each.to(model.dtype), model.device) for each in (down, up))
            changes.setdefault(part, {})[name] = LowRank(*there)
    return changes


@hookimpl
def darkroom_adapters() -> Sequence[Adapter]:
    return [Loras()]
