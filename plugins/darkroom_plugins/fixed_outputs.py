"""Layers whose output is known before they are run: what they make is the same at each evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


class FixedOutput:
    """Stands in the place of a layer's forward where it is known what the layer makes. A network whose own forward is
    replaced does as it says only where that says so, by an attribute `supports_fixed_outputs`."""

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value

    def __call__(self, *_: object) -> torch.Tensor:
        return self.value


@contextlib.contextmanager
def with_fixed_outputs(outputs: Mapping[nn.Module, torch.Tensor]) -> Iterator[None]:
    """A context in which these layers, of which none is `changed`, are not run but have these outputs."""
    for layer, output in outputs.items():
        vars(layer)["forward"] = FixedOutput(output)
    try:
        yield
    finally:
        for layer in outputs:
            del vars(layer)["forward"]


def is_patched(layer: nn.Module) -> bool:
    """Whether something else has a hand in it, as where weights come and go."""
    return "forward" in vars(layer) or bool(layer._forward_pre_hooks) or bool(layer._forward_hooks)
