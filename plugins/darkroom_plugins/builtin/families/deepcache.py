"""DeepCache (Ma et al. 2023, arXiv 2312.00858): the deep features of a UNet change little between neighbouring
evaluations. A full step runs all layers and caches these features; a cached step runs the shallow layers on them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from darkroom_plugins.sample import Evaluation, Row

DEPTH = 1  # shallow layers of the first down block, each with its skip connection to the last up block
MAX_INTERVAL = 20  # evaluations, the paper's maximum; it finds pictures close to the full network's up to 5


def max_interval(config: Any) -> int:
    """The greatest cache interval for a UNet of this configuration; 1 if it has too few layers to split."""
    layers = config["layers_per_block"]
    return MAX_INTERVAL if (layers if isinstance(layers, int) else layers[0]) >= DEPTH else 1


class Layers:
    """A UNet split into shallow layers (first of the first down block, last of the last up block, with their skip
    connections) and deep ones (all others). Both use the network's own modules."""

    def __init__(self, unet: Any) -> None:
        *before, last = unet.up_blocks
        self._shallow_up = _ShallowUpBlock(_layers(last, slice(-DEPTH - 1, None)))
        deep = _layers(last, slice(-DEPTH - 1))
        self._full = {"up_blocks": nn.ModuleList([*before, *([deep] if deep.resnets else []), self._shallow_up])}
        first = _layers(unet.down_blocks[0], slice(DEPTH))
        first.downsamplers = None
        self._shallow = {
            "down_blocks": nn.ModuleList([first]),
            "mid_block": None,
            "up_blocks": nn.ModuleList([self._shallow_up]),
        }

    def full_step(self, unet: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The UNet's output and its deep features, (rows, channels, h, w)."""
        with self._shallow_up.using(None), _modules_replaced(unet, self._full):
            output = unet(*args, **kwargs)[0]
            assert self._shallow_up.deep_features is not None
            return output, self._shallow_up.deep_features

    def cached_step(self, unet: Any, deep_features: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The UNet's output from its shallow layers and cached deep features."""
        if kwargs.get("mid_block_additional_residual") is not None:  # a ControlNet's; the mid block does not run
            kwargs["mid_block_additional_residual"] = deep_features.new_zeros(())
        with self._shallow_up.using(deep_features), _modules_replaced(unet, self._shallow):
            return unet(*args, **kwargs)[0]  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class DeepFeatures:
    """The deep features of a row."""

    evaluation: int  # index of the evaluation that made them
    tensor: torch.Tensor  # (1, channels, h, w)


def is_cached_step(row: Row) -> bool:
    """Whether the row's next evaluation is a cached step. Not if the features are of that same evaluation, run again
    after a failure."""
    cached = _features(row).get(row.unconditional)
    age = row.sample.evaluation - cached.evaluation if cached else 0
    return 0 < age < row.sample.request.cache_interval


def _features(row: Row) -> dict[bool, DeepFeatures]:
    """The deep features of the sample's rows, by `Row.unconditional`."""
    found: dict[bool, DeepFeatures] = row.sample.state.setdefault("deepcache", {})
    return found


_split: WeakKeyDictionary[nn.Module, Layers] = WeakKeyDictionary()


def denoise(unet: Any, evaluation: Evaluation, *args: Any, **kwargs: Any) -> torch.Tensor:
    """The UNet's output. The step is a cached one for all rows or a full one for all; a full step caches the features
    of rows with a cache interval."""
    if all(row.sample.request.cache_interval == 1 for row in evaluation.rows):
        return unet(*args, **kwargs)[0]  # type: ignore[no-any-return]
    if unet not in _split:
        _split[unet] = Layers(unet)
    layers = _split[unet]
    if is_cached_step(evaluation.rows[0]):
        deep_features = torch.cat([_features(row)[row.unconditional].tensor for row in evaluation.rows])
        return layers.cached_step(unet, deep_features, *args, **kwargs)
    output, deep_features = layers.full_step(unet, *args, **kwargs)
    for row, features in zip(evaluation.rows, deep_features.split(1), strict=True):
        if row.sample.request.cache_interval > 1:
            # Cloned: a view would keep the whole batch's tensor in memory.
            _features(row)[row.unconditional] = DeepFeatures(row.sample.evaluation, features.clone())
    return output


class _ShallowUpBlock(nn.Module):
    """The shallow layers of the last up block. Uses cached deep features if set, else records those that come in."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block
        self.resnets = block.resnets
        self.has_cross_attention = getattr(block, "has_cross_attention", False)
        self.deep_features: torch.Tensor | None = None

    @contextlib.contextmanager
    def using(self, deep_features: torch.Tensor | None) -> Iterator[None]:
        """Context manager: forward uses these features; with None it records the next forward's."""
        self.deep_features = deep_features
        try:
            yield
        finally:
            self.deep_features = None

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if self.deep_features is None:
            self.deep_features = hidden_states
        return self.block(hidden_states=self.deep_features, **kwargs)  # type: ignore[no-any-return]


def _layers(block: nn.Module, part: slice) -> Any:
    """A shallow copy of the block with a slice of its resnets and attentions."""
    some = copy.copy(block)
    some._modules = {**block._modules}
    for name in ("resnets", "attentions"):
        if name in block._modules:
            setattr(some, name, nn.ModuleList(list(getattr(block, name))[part]))
    return some


@contextlib.contextmanager
def _modules_replaced(unet: nn.Module, modules: Mapping[str, nn.Module | None]) -> Iterator[None]:
    """Context manager: the UNet has these submodules in place of its own."""
    before = {name: unet._modules[name] for name in modules}
    unet._modules.update(modules)
    try:
        yield
    finally:
        unet._modules.update(before)
