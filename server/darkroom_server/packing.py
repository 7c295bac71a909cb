"""Weights of convolutions in the order that oneDNN computes with: else each evaluation brings them into it again, which
takes a sixth of one of a small denoiser with two rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

MAX_CHANNELS = 256  # of a layer that is packed: larger ones may be slower so


def pack(network: nn.Module) -> None:
    """Have the small convolutions of a network on the CPU compute with a packed copy of their weights."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and _packable(layer):
            layer.forward = _packed(layer)  # type: ignore[assignment,method-assign]


def _packable(layer: nn.Conv2d) -> bool:
    small = max(layer.in_channels, layer.out_channels) <= MAX_CHANNELS
    usual = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    point = layer.kernel_size == (1, 1)  # a product of matrices, slower with packed weights
    here = layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32
    return small and usual and not point and here and _available()


def _available() -> bool:
    """The operators are those that torch's own compiler uses, and not promised to others."""
    operators = ("_reorder_convolution_weight", "_convolution_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in operators)


def _packed(layer: nn.Conv2d) -> Callable[[torch.Tensor], torch.Tensor]:
    how = [list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups]
    weight = torch.ops.mkldnn._reorder_convolution_weight(layer.weight.detach(), *how, None)
    convolve, bias = torch.ops.mkldnn._convolution_pointwise.default, layer.bias

    def forward(pictures: torch.Tensor) -> torch.Tensor:
        return convolve(pictures, weight, bias, *how, "none", [], "")  # type: ignore[no-any-return]

    return forward
