"""Sizes of a model's networks, and what their memory options are called: without torch, unless an option converts
weights."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from darkroom_plugins.contract import Family
    from darkroom_server.config.settings import MemoryOptions

# diffusers' names of torch's SDPA kernels. Its own backend selection applies to transformers only: a UNet's attention
# always calls torch's scaled_dot_product_attention.
ATTENTION_KERNELS = {
    "native": None,  # torch chooses
    "_native_cudnn": "CUDNN_ATTENTION",
    "_native_efficient": "EFFICIENT_ATTENTION",
    "_native_flash": "FLASH_ATTENTION",
    "_native_math": "MATH",
}


def denoiser(family: Family) -> str | None:
    """The name of the denoiser; None if the family keeps it elsewhere."""
    return next((name for name in ("unet", "transformer") if name in family.meta_components), None)


def device_bytes(family: Family, options: MemoryOptions) -> int:
    """Peak device memory of the weights, in bytes."""
    sizes = {name: list(_layer_bytes(name, family, options)) for name in family.meta_components}
    match options.offload:
        case "none":
            return sum(map(sum, sizes.values()))
        case "model":
            return max(map(sum, sizes.values()), default=0)
        case "sequential":
            return max((size for layers in sizes.values() for size in layers), default=0)
        case _:  # with a stream, the next layer is prefetched while one runs
            return max((sum(sorted(layers)[-2:]) for layers in sizes.values()), default=0)


def _layer_bytes(name: str, family: Family, options: MemoryOptions) -> Iterable[int]:
    """Bytes of each layer's own weights."""
    if name == denoiser(family) and (options.quantize is not None or options.layerwise_casting is not None):
        from darkroom_server.networks.conversion import converted_layer_bytes

        return converted_layer_bytes(name, family, options)
    layers = Counter[str]()
    for weight, shape in family.shapes(name).items():
        layers[weight.rpartition(".")[0]] += prod(shape) * family.itemsize_of(name)
    return layers.values()
