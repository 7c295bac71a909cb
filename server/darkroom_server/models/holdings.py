"""How models and assets are loaded, parked in host memory, and dropped."""

from __future__ import annotations

import copy
import functools
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from darkroom_plugins.files import load_weights
from darkroom_plugins.uploads import uploading
from darkroom_server.config.settings import MemoryOptions
from darkroom_server.device.pinned import free_pinned, pinned_bytes, pinned_like
from darkroom_server.device.transfer import settle
from darkroom_server.models.assets import AssetFiles
from darkroom_server.models.residency import Holding, Key, Loading, Report
from darkroom_server.networks.placement import Placement, first_device, place

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from darkroom_plugins.contract import Family
    from darkroom_plugins.files import ModelFiles
    from darkroom_server.models.assets import Asset
    from darkroom_server.models.model import Model

Weights = Mapping[str, torch.Tensor]


def load(
    family: Family,
    files: ModelFiles,
    options: MemoryOptions | None = None,
    report: Callable[[str, int], None] = lambda *_: None,
) -> Placement:
    """Read the weights of a model, and place them as the memory options say. `report` gets a component's name and the
    number of bytes read since its last call.

    :raises OSError, ValueError: the weights cannot be read, or do not fit the model
    """
    components, options = {}, options or MemoryOptions()
    with uploading(family.device):
        for name, meta in family.meta_components.items():
            components[name], dtype = copy.deepcopy(meta), family.dtype_of(name)
            tell = functools.partial(_tell, report, name, dtype)
            # Rounded to the model's dtype first, whatever the component's, like in diffusers' pipelines.
            load_weights(components[name], files.weights(name), family.dtype, first_device(family, options), tell)
            nn.Module.to(components[name], dtype)  # not diffusers' override, which warns
        placement = place(components, family, options)
    family.components = components
    return placement


class ModelHolding(Holding):
    """A model's networks."""

    def __init__(self, model: Model, ready: Callable[[Model], Awaitable[None]]) -> None:
        """`ready` is awaited after each loading."""
        super().__init__(("model", model.name), f"model {model.name}", model.device_bytes)
        # Offloaded networks are in host memory anyway; torchao's quantized weights do not reload from a state dict.
        self.parks = model.settings.offload == "none" and model.settings.quantize is None
        if self.parks and model.family.device.type == "cuda":
            self.parked_bytes = pinned_bytes(_weight_sizes(model.family))
        self._model = model
        self._ready = ready
        self._parked: Mapping[str, Weights] = {}

    def load(self, report: Report) -> None:
        family, done = self._model.family, 0

        def tell(component: str, size: int) -> None:
            nonlocal done
            done += size
            report(Loading(self._model.name, component, "read", done, family.weight_bytes))

        if self._parked:
            tell("", 0)
            self._unpark()
        else:
            self._download(report)
            tell("", 0)
            self._model.placement = load(family, self._model.files, self._model.settings, tell)

    def _download(self, report: Report) -> None:
        name, files, parts = self._model.name, self._model.files, self._model.family.meta_components
        total, done = files.fetch_bytes(parts), 0

        def tell(size: int) -> None:
            nonlocal done
            done += size
            report(Loading(name, "", "download", min(done, total), total))

        if total:
            tell(0)
        files.fetch(parts, tell)

    async def ready(self) -> None:
        await self._ready(self._model)

    def park(self) -> None:
        family = self._model.family
        states = {component: network.state_dict() for component, network in family.components.items()}
        copies = iter(_host_copies([tensor for state in states.values() for tensor in state.values()], family.device))
        self._parked = {component: {name: next(copies) for name in state} for component, state in states.items()}
        self._release_networks()

    def drop(self) -> None:
        parked, self._parked = bool(self._parked), {}
        self._release_networks()
        if parked:
            free_pinned()

    def _unpark(self) -> None:
        """Copy the parked weights to the device; a copy, so that a failed loading can be retried."""
        family, components = self._model.family, {}
        with uploading(family.device) as uploader:
            for component, weights in self._parked.items():
                components[component] = copy.deepcopy(family.meta_components[component])
                copies = {
                    name: each.to(family.device, copy=True) if uploader is None else uploader.copy(each)
                    for name, each in weights.items()
                }
                components[component].load_state_dict(copies, assign=True)
            placement = place(components, family, self._model.settings)
        self._model.placement, family.components, self._parked = placement, components, {}

    def _release_networks(self) -> None:
        if self._model.family.components:
            settle(self._model.family.device)
        self._model.family.components, self._model.placement = {}, Placement()
        gc.collect()  # torch keeps its memory for what comes next


class AssetHolding(Holding):
    """An asset, loaded for one of its models."""

    def __init__(self, asset: Asset, model: Model) -> None:
        kind, name = str(asset.user.asset_kind), asset.settings.name
        super().__init__((kind, name, model.name), f"{kind} {name} for model {model.name}", asset.info.weight_bytes)
        self._asset, self._model = asset, model

    def load(self, report: Report) -> None:
        report(Loading(self._model.name, self._asset.settings.name, "read", 0, self.device_bytes))
        with uploading(self._model.family.device):
            self.value = self._asset.user.load_asset(self._asset.path, self._model.family)

    def drop(self) -> None:
        settle(self._model.family.device)
        self.value = None
        self._asset.user.release()
        gc.collect()


def holdings(
    models: Mapping[str, Model], assets: AssetFiles, ready: Callable[[Model], Awaitable[None]]
) -> dict[Key, Holding]:
    """All holdings by key. `ready` is awaited after each loading of a model."""
    # Without embeddings, which are small: the planner reads them with the prompt.
    listed = [asset for kind, entries in assets.entries.items() if kind != "embedding" for asset in entries.values()]
    found: list[Holding] = [ModelHolding(model, ready) for model in models.values()]
    found += (AssetHolding(asset, models[name]) for asset in listed for name in asset.fits)
    return {holding.key: holding for holding in found}


def _host_copies(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Copies in host memory; of CUDA tensors in pinned memory, for a fast transfer back, and beside running jobs."""
    with uploading(device) as uploader:
        if uploader is None:
            return [tensor.to("cpu", copy=True) for tensor in tensors]
        copies = pinned_like(tensors)
        for copied, tensor in zip(copies, tensors, strict=True):
            copied.copy_(tensor, non_blocking=True)
    return copies


def _weight_sizes(family: Family) -> Iterator[int]:
    """Bytes of each tensor that is parked, in order."""
    for name, network in family.meta_components.items():
        for tensor in network.state_dict().values():
            yield tensor.numel() * (family.dtype_of(name) if tensor.is_floating_point() else tensor.dtype).itemsize


def _tell(report: Callable[[str, int], None], component: str, dtype: torch.dtype, values: int) -> None:
    report(component, values * dtype.itemsize)
