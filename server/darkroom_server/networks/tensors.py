"""Traversal of parameters, buffers and nested arguments, for placement, compilation and tracing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn


def tensors(network: nn.Module) -> Iterator[tuple[dict[str, Any], str, torch.Tensor]]:
    """All parameters and buffers: (dict of the module, key, tensor)."""
    for module in network.modules():
        for table in (module._parameters, module._buffers):
            yield from ((table, name, tensor) for name, tensor in table.items() if tensor is not None)


def mapped(value: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """Map a function over all tensors of nested arguments."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {name: mapped(each, function) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(mapped(each, function) for each in value)
    return value
