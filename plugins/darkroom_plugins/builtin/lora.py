"""LoRA (Hu et al. 2021) and its kin: updates of a model's layers, with a set of LoRAs for each row of a batch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from darkroom_plugins import hookimpl
from darkroom_plugins.builtin.loras.dialects import LoraFile, LoraUpdates
from darkroom_plugins.builtin.loras.layer_names import component_of
from darkroom_plugins.builtin.loras.updates import Update, combined
from darkroom_plugins.contract import Adapter, AssetInfo, AssetKind, Assets, Family
from darkroom_plugins.deferred import torch
from darkroom_plugins.files import shapes_of
from darkroom_plugins.request import Request
from darkroom_plugins.sample import Evaluation, Row, Sample
from darkroom_plugins.tensors import constant, to_device

if TYPE_CHECKING:
    from torch import nn

darkroom_api_version = 1

MAX_CACHED_SETS = 16
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")

LoraSet: TypeAlias = tuple[tuple[str, float], ...]  # (name, weight) of each
LayerUpdates: TypeAlias = Mapping[str, Sequence[Update]]  # layer name in its component → updates, to be summed
Updates: TypeAlias = Mapping[str, LayerUpdates]  # component → its layers' updates
Rows: TypeAlias = "torch.Tensor | None"  # indices of a batch's rows; None: all


class Loras(Adapter):
    """Adds each row's set of LoRAs by forward hooks on the layers, for one evaluation; the model's weights do not
    change. The low-rank updates of a set are concatenated to one."""

    name = "lora"
    description = "Adds LoRAs, each with a weight; every picture of a batch may have others."
    asset_kind: AssetKind = "lora"  # type: ignore[misc]

    def __init__(self) -> None:
        self._sets: OrderedDict[Hashable, Updates] = OrderedDict()

    def wants(self, request: Request, parameters: None) -> bool:
        return bool(_lora_set(request))

    def company(self, row: Row) -> Hashable:
        return _lora_set(row.sample.request)

    def prompt_key(self, request: Request, parameters: None) -> Hashable:
        return _lora_set(request)

    def describe_asset(self, path: Path) -> AssetInfo:
        changed = {component_of(layer) for layer in LoraFile(path).layers}
        components = tuple(part for part in COMPONENTS if part in changed)
        return AssetInfo(components=components, weight_bytes=path.stat().st_size)

    def incompatibility(self, path: Path, model: Family) -> str | None:
        if "unet" not in model.meta_components:
            return "it changes a UNet, which the model does not have"
        try:
            LoraFile(path).check({name: model.shapes(name) for name in model.meta_components})
        except ValueError as error:
            return str(error)
        return None

    def load_asset(self, path: Path, model: Family) -> LoraUpdates:
        """Its updates on the CPU, by component and layer."""
        return LoraFile(path).updates({name: shapes_of(each) for name, each in model.meta_components.items()})

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
            (constant(indices, device) if len(indices) < len(evaluation.rows) else None, updates["unet"])
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
        found = self._sets.pop(key, None) or _summed(lora_set, sample.assets, sample.model)
        self._sets[key] = found
        if len(self._sets) > MAX_CACHED_SETS:
            self._sets.popitem(last=False)
        return found


def _lora_set(request: Request) -> LoraSet:
    """The LoRAs of non-zero weight, sorted, so that equal sets compare equal."""
    return tuple(sorted((lora.name, lora.weight) for lora in request.loras if lora.weight != 0))


def _hook(hooks: ExitStack, network: nn.Module, groups: Sequence[tuple[Rows, LayerUpdates]]) -> None:
    """Register forward hooks that add each group's updates to its rows, until `hooks` closes."""
    layers: dict[str, list[tuple[Rows, Update]]] = {}
    for rows, updates in groups:
        for name, each in updates.items():
            layers.setdefault(name, []).extend((rows, update) for update in each)
    for name, parts in layers.items():
        hooks.enter_context(_removed_on_exit(network.get_submodule(name).register_forward_hook(_add_updates(parts))))


def _add_updates(parts: Sequence[tuple[Rows, Update]]) -> Callable[..., torch.Tensor]:
    def add(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        for rows, update in parts:
            if rows is None:
                output = output + update(layer, inputs[0])
            else:
                added = update(layer, inputs[0][rows]).expand(len(rows), *output.shape[1:])
                output = output.index_add(0, rows, added)
        return output

    return add


@contextmanager
def _removed_on_exit(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _summed(lora_set: LoraSet, assets: Assets, model: Family) -> Updates:
    """The weighted sum of LoRAs, on the model's device."""
    loras: list[tuple[LoraUpdates, float]] = [(assets.get("lora", name), weight) for name, weight in lora_set]
    updates: dict[str, dict[str, list[Update]]] = {}
    for lora, weight in loras:
        for part, layers in lora.items():
            for name, each in layers.items():
                scaled = [update.mapped(torch.Tensor.float).scaled(scale * weight) for update, scale in each]
                updates.setdefault(part, {}).setdefault(name, []).extend(scaled)

    def placed(tensor: torch.Tensor) -> torch.Tensor:
        return to_device(tensor.to(model.dtype), model.device)

    return {
        part: {name: [each.mapped(placed) for each in combined(found)] for name, found in layers.items()}
        for part, layers in updates.items()
    }


@hookimpl
def darkroom_adapters() -> Sequence[Adapter]:
    return [Loras()]
