"""The layers of a UNet as DeepCache runs them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn


class Layers:
    """A UNet split into shallow layers (first of the first down block, last of the last up block, with their skip
    connections) and deep ones (all others). Both use the network's own modules."""

    def __init__(self, unet: Any, depth: int) -> None:
        """`depth`: shallow layers of the first down block."""
        *before, last = unet.up_blocks
        self._shallow_up = _ShallowUpBlock(_layers(last, slice(-depth - 1, None)))
        deep = _layers(last, slice(-depth - 1))
        self._full = {"up_blocks": nn.ModuleList([*before, *([deep] if deep.resnets else []), self._shallow_up])}
        first = _layers(unet.down_blocks[0], slice(depth))
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
