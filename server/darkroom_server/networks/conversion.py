"""Conversion of a denoiser's weights to smaller types: layerwise casting, quantisation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from darkroom_plugins.contract import Family
    from darkroom_server.config.settings import MemoryOptions

INT4_GROUP = 128  # weights that share a scale


def cast(network: Any, options: MemoryOptions, dtype: torch.dtype) -> None:
    """Layerwise casting: store weights of convolutions and linear layers in an 8-bit type, cast them to compute."""
    if options.layerwise_casting is not None:
        storage = getattr(torch, options.layerwise_casting)
        network.enable_layerwise_casting(storage_dtype=storage, compute_dtype=dtype)


def quantise(network: nn.Module, kind: str, device: torch.device) -> None:
    """Quantise the linear layers' weights, layer by layer on the device; with float8-dynamic their activations too,
    at each call: Hopper's tensor cores multiply float8 twice as fast as half precision. Scales are per row, so that
    pictures in a batch do not affect each other.

    :raises ImportError: torchao, or a dependency of this kind, is missing
    """
    import torchao.quantization as ao

    configs: dict[str, Callable[[], Any]] = {  # Inductor's settings are process-wide
        "int8": lambda: ao.Int8WeightOnlyConfig(set_inductor_config=False),
        "int4": lambda: ao.Int4WeightOnlyConfig(group_size=INT4_GROUP, set_inductor_config=False),
        "float8": lambda: ao.Float8WeightOnlyConfig(set_inductor_config=False),
        "float8-dynamic": lambda: ao.Float8DynamicActivationFloat8WeightConfig(
            granularity=ao.PerRow(), set_inductor_config=False
        ),
    }
    ao.quantize_(network, configs[kind](), device=device)


def converted_layer_bytes(name: str, family: Family, options: MemoryOptions) -> Iterator[int]:
    """Bytes of each layer's own weights, of a denoiser that is quantised or cast."""
    network = nn.Module.to(copy.deepcopy(family.meta_components[name]), family.dtype_of(name))
    cast(network, options, family.dtype)
    for module in network.modules():
        linear = isinstance(module, nn.Linear)
        yield sum(_bytes(p, options.quantize if linear else None) for p in module.parameters(recurse=False))


def _bytes(weights: torch.Tensor, quantised: str | None) -> int:
    if quantised is None or weights.dim() < 2 or (quantised == "int4" and weights.shape[1] % INT4_GROUP):
        return weights.nbytes
    if quantised == "int4":  # plus a scale and a zero point per group, 2 bytes each
        return weights.numel() // 2 + weights.numel() // INT4_GROUP * 4
    return weights.numel() + 5 * weights.shape[0]  # plus per row a scale of up to 4 bytes and a zero point
