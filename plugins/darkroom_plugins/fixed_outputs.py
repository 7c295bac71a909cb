"""Layers replaced by a constant output, for layers whose output is the same at each evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


class FixedOutput:
    """A layer's forward that returns a constant. A replaced forward of the whole network (traced, compiled) honours it
    only if it has an attribute `supports_fixed_outputs`."""

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value

    def __call__(self, *_: object) -> torch.Tensor:
        return self.value


@contextlib.contextmanager
def with_fixed_outputs(outputs: Mapping[nn.Module, torch.Tensor]) -> Iterator[None]:
    """Context manager: these layers return these outputs. None of them may be patched (`is_patched`)."""
    for layer, output in outputs.items():
        vars(layer)["forward"] = FixedOutput(output)
    try:
        yield
    finally:
        for layer in outputs:
            del vars(layer)["forward"]


def is_patched(layer: nn.Module) -> bool:
    """Whether the layer's forward is replaced or has hooks, as under offload."""
    return "forward" in vars(layer) or bool(layer._forward_pre_hooks) or bool(layer._forward_hooks)
