"""Feature reuse (DeepCache, Ma et al. 2023, arXiv 2312.00858): a UNet's inner layers change little from one evaluation
to the next, so that for some evaluations its outermost layers alone are run, with what the inner ones made before."""

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

DEPTH = 1  # layers of the first down block that are always run, each with its skip connection to the last up block
MAX_INTERVAL = 20  # evaluations; the paper goes that far, and finds pictures near the whole network's up to 5


def max_interval(config: Any) -> int:
    """The greatest interval that is offered for a UNet of this configuration; 1 where it is too small to be parted."""
    layers = config["layers_per_block"]
    return MAX_INTERVAL if (layers if isinstance(layers, int) else layers[0]) >= DEPTH else 1


class Layers:
    """A UNet's layers in two parts: the outer ones are the first of the first down block and the last of the last up
    block, joined by skip connections; the inner ones all others. They share the network's own modules."""

    def __init__(self, unet: Any) -> None:
        *before, last = unet.up_blocks
        self._tail = _Tail(_layers(last, slice(-DEPTH - 1, None)))
        inner = _layers(last, slice(-DEPTH - 1))
        self._whole = {"up_blocks": nn.ModuleList([*before, *([inner] if inner.resnets else []), self._tail])}
        first = _layers(unet.down_blocks[0], slice(DEPTH))
        first.downsamplers = None
        self._outer = {
            "down_blocks": nn.ModuleList([first]),
            "mid_block": None,
            "up_blocks": nn.ModuleList([self._tail]),
        }

    def whole(self, unet: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The network's output for each row, and its features: what its inner layers give to the outer ones."""
        with self._tail.given(None), _in_place(unet, self._whole):
            output = unet(*args, **kwargs)[0]
            assert self._tail.features is not None
            return output, self._tail.features

    def outer(self, unet: Any, features: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Its output by its outer layers, given such features of each row."""
        if kwargs.get("mid_block_additional_residual") is not None:  # a ControlNet's, for an inner layer
            kwargs["mid_block_additional_residual"] = features.new_zeros(())
        with self._tail.given(features), _in_place(unet, self._outer):
            return unet(*args, **kwargs)[0]  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Features:
    """What the inner layers of a denoiser made of a row."""

    evaluation: int  # at this of its sample's evaluations
    tensor: torch.Tensor  # (1, channels, h, w)


def reuses(row: Row) -> bool:
    """Whether the row's features serve its next evaluation, too. Not those of the same one, which is run again."""
    kept = _features(row).get(row.unconditional)
    age = row.sample.evaluation - kept.evaluation if kept else 0
    return 0 < age < row.sample.request.cache_interval


def _features(row: Row) -> dict[bool, Features]:
    """Those of its sample's rows, by whether a row is the unconditional one."""
    found: dict[bool, Features] = row.sample.state.setdefault("deepcache", {})
    return found


_known: WeakKeyDictionary[nn.Module, Layers] = WeakKeyDictionary()


def denoise(unet: Any, evaluation: Evaluation, *args: Any, **kwargs: Any) -> torch.Tensor:
    """The UNet's output for rows that all reuse features, or all do not: those that may later then keep them."""
    if all(row.sample.request.cache_interval == 1 for row in evaluation.rows):
        return unet(*args, **kwargs)[0]  # type: ignore[no-any-return]
    if unet not in _known:
        _known[unet] = Layers(unet)
    layers = _known[unet]
    if reuses(evaluation.rows[0]):
        features = torch.cat([_features(row)[row.unconditional].tensor for row in evaluation.rows])
        return layers.outer(unet, features, *args, **kwargs)
    output, made = layers.whole(unet, *args, **kwargs)
    for row, features in zip(evaluation.rows, made.split(1), strict=True):
        if row.sample.request.cache_interval > 1:
            # A copy, which does not keep those of the whole batch.
            _features(row)[row.unconditional] = Features(row.sample.evaluation, features.clone())
    return output


class _Tail(nn.Module):
    """The outer layers of the last up block: uses the features that it has, else keeps those that it is given."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block
        self.resnets = block.resnets
        self.has_cross_attention = getattr(block, "has_cross_attention", False)
        self.features: torch.Tensor | None = None

    @contextlib.contextmanager
    def given(self, features: torch.Tensor | None) -> Iterator[None]:
        """A context in which it uses these, or keeps those of the next forward."""
        self.features = features
        try:
            yield
        finally:
            self.features = None

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if self.features is None:
            self.features = hidden_states
        return self.block(hidden_states=self.features, **kwargs)  # type: ignore[no-any-return]


def _layers(block: nn.Module, part: slice) -> Any:
    """A block of some of a block's layers."""
    some = copy.copy(block)
    some._modules = {**block._modules}
    for name in ("resnets", "attentions"):
        if name in block._modules:
            setattr(some, name, nn.ModuleList(list(getattr(block, name))[part]))
    return some


@contextlib.contextmanager
def _in_place(unet: nn.Module, modules: Mapping[str, nn.Module | None]) -> Iterator[None]:
    before = {name: unet._modules[name] for name in modules}
    unet._modules.update(modules)
    try:
        yield
    finally:
        unet._modules.update(before)
