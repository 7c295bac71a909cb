"""LoRA (Hu et al. 2021): low-rank updates of a model's layers, with a set of LoRAs for each row of a batch."""

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

MAX_CACHED_SETS = 16
# Names of a layer's down matrix, of all matrices, and of the networks, in diffusers', kohya's and PEFT's formats.
DOWN = re.compile(r"(lora_A|down)\.weight$")
KNOWN = re.compile(r"(lora_[AB]|[._](down|up))\.weight$|\.alpha$")
CROSS_ATTENTION = re.compile(r"attn2[._].*to_k.*(lora_A|down)\.weight$")
PREFIXES = {
    "unet": ("unet.", "lora_unet_"),
    "text_encoder": ("text_encoder.", "lora_te_", "lora_te1_"),
    "text_encoder_2": ("text_encoder_2.", "lora_te2_"),
}

LoraSet: TypeAlias = tuple[tuple[str, float], ...]  # (name, weight) of each


@dataclass(frozen=True, slots=True)
class LowRankUpdate:
    """Added to a layer's output: up(down(x))."""

    down: torch.Tensor  # (rank, in) for linear layers, (rank, in, h, w) for convolutions
    up: torch.Tensor  # (out, rank) or (out, rank, 1, 1), times weight and alpha / rank

    def __call__(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if isinstance(layer, nn.Conv2d):
            inner = nn.functional.conv2d(x, self.down, None, layer.stride, layer.padding, layer.dilation, layer.groups)
            return nn.functional.conv2d(inner, self.up)
        return nn.functional.linear(nn.functional.linear(x, self.down), self.up)


LayerUpdates: TypeAlias = Mapping[str, LowRankUpdate]  # layer name in its component → update
Updates: TypeAlias = Mapping[str, LayerUpdates]  # component → its layers' updates


class Loras(Adapter):
    """Adds each row's set of LoRAs by forward hooks on the layers, for one evaluation; the model's weights do not
    change. The LoRAs of a set are concatenated to one low-rank update."""

    name = "lora"
    description = "Adds LoRAs, each with a weight; every picture of a batch may have others."
    asset_kind: AssetKind = "lora"  # type: ignore[misc]

    def __init__(self) -> None:
        self._sets: OrderedDict[Hashable, Updates] = OrderedDict()

    def wants(self, request: Request, parameters: None) -> bool:
        return bool(_lora_set(request))

    def prompt_key(self, request: Request, parameters: None) -> Hashable:
        return _lora_set(request)

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

    def load_asset(self, path: Path, model: Family) -> Updates:
        """Its matrices on the CPU, read by diffusers' loader for all formats.

        :raises ValueError: it has layers that the model lacks, DoRA or biases
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
        updates = self._set(sample)
        with ExitStack() as hooks:
            for part in ("text_encoder", "text_encoder_2"):
                if part in updates:
                    _hook(hooks, sample.model.components[part], [(None, updates[part])])
            yield

    @contextmanager
    def applied(self, model: Family, evaluation: Evaluation, parameters: Sequence[None]) -> Iterator[None]:
        rows: dict[LoraSet, list[int]] = {}
        samples: dict[LoraSet, Sample] = {}
        for index, row in enumerate(evaluation.rows):
            if lora_set := _lora_set(row.sample.request):
                rows.setdefault(lora_set, []).append(index)
                samples[lora_set] = row.sample
        device = evaluation.latents.device
        groups = [
            (to_device(torch.tensor(indices), device) if len(indices) < len(evaluation.rows) else None, updates["unet"])
            for lora_set, indices in rows.items()
            if "unet" in (updates := self._set(samples[lora_set]))
        ]
        with ExitStack() as hooks:
            _hook(hooks, model.components["unet"], groups)
            yield

    def release(self) -> None:
        self._sets.clear()

    def _set(self, sample: Sample) -> Updates:
        """The sample's set of LoRAs as one update, on the model's device; least recently used sets are dropped."""
        lora_set = _lora_set(sample.request)
        key = (id(sample.model), lora_set)
        found = self._sets.pop(key, None) or _concatenated(lora_set, sample.assets, sample.model)
        self._sets[key] = found
        if len(self._sets) > MAX_CACHED_SETS:
            self._sets.popitem(last=False)
        return found


def _lora_set(request: Request) -> LoraSet:
    """The LoRAs of non-zero weight, sorted, so that equal sets compare equal."""
    return tuple(sorted((lora.name, lora.weight) for lora in request.loras if lora.weight != 0))


def _hook(hooks: ExitStack, network: nn.Module, groups: Sequence[tuple[torch.Tensor | None, LayerUpdates]]) -> None:
    """Register forward hooks that add each group's updates to its rows (None: all), until `hooks` closes."""
    layers: dict[str, list[tuple[torch.Tensor | None, LowRankUpdate]]] = {}
    for rows, updates in groups:
        for name, update in updates.items():
            layers.setdefault(name, []).append((rows, update))
    for name, parts in layers.items():
        hooks.enter_context(_removed_on_exit(network.get_submodule(name).register_forward_hook(_add_updates(parts))))


def _add_updates(parts: Sequence[tuple[torch.Tensor | None, LowRankUpdate]]) -> Callable[..., torch.Tensor]:
    def add(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        for rows, update in parts:
            if rows is None:
                output = output + update(layer, inputs[0])
            else:
                output = output.index_add(0, rows, update(layer, inputs[0][rows]))
        return output

    return add


@contextmanager
def _removed_on_exit(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _read(model: Family, part: str, state: Any, alphas: Any, metadata: Any) -> LayerUpdates:
    """The updates of one component: diffusers loads them into a copy of it without weights."""
    empty = copy.deepcopy(model.meta_components[part]).to_empty(device="cpu")  # allocated, never written
    load = getattr(model.pipeline_class, f"load_lora_into_{'unet' if part == 'unet' else 'text_encoder'}")  # type: ignore[attr-defined]
    more = {} if part == "unet" else {"prefix": part}
    load(dict(state), alphas, empty, adapter_name="it", metadata=metadata, low_cpu_mem_usage=True, **more)
    return {name: _low_rank(name, layer) for name, layer in empty.named_modules() if isinstance(layer, LoraLayer)}


def _low_rank(name: str, layer: Any) -> LowRankUpdate:
    down, up = layer.lora_A["it"], layer.lora_B["it"]
    if layer.use_dora["it"] or up.bias is not None or not isinstance(down, nn.Linear | nn.Conv2d):
        raise ValueError(f"it changes {name} in a way that cannot be applied row by row")
    with torch.no_grad():
        return LowRankUpdate(down.weight.detach().clone(), up.weight.detach() * layer.scaling["it"])


def _concatenated(lora_set: LoraSet, assets: Assets, model: Family) -> Updates:
    """The weighted sum of LoRAs as one update: down and up matrices concatenated along the rank."""
    loras: list[tuple[Updates, float]] = [(assets.get("lora", name), weight) for name, weight in lora_set]
    updates: dict[str, dict[str, LowRankUpdate]] = {}
    for part in PREFIXES:
        layers = {name for lora, _ in loras for name in lora.get(part, ())}
        for name in sorted(layers):
            parts = [(lora[part][name], weight) for lora, weight in loras if name in lora.get(part, ())]
            down = torch.cat([each.down for each, _ in parts])
            up = torch.cat([each.up * weight for each, weight in parts], dim=1)
            moved = (to_device(each.to(model.dtype), model.device) for each in (down, up))
            updates.setdefault(part, {})[name] = LowRankUpdate(*moved)
    return updates


@hookimpl
def darkroom_adapters() -> Sequence[Adapter]:
    return [Loras()]
