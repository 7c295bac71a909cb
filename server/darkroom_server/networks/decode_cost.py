"""What decoding a picture costs: operations and memory, known before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from darkroom_plugins.contract import Family


@dataclass(frozen=True, slots=True)
class Cost:
    """Of decoding one picture."""

    operations: float  # floating-point
    bytes: float  # the inputs and outputs of the largest layer: it takes at least these


@dataclass(frozen=True, slots=True)
class DecodeCosts:
    """Of one VAE, by the size of the latents. Convolutions grow with their pixels, attention with their square."""

    linear: float  # operations per pixel of the latents
    quadratic: float  # operations per pixel squared
    bytes_per_pixel: float
    tile: int  # edge of a tile
    step: int  # from tile to tile, which overlap
    picture_bytes: float  # of the result, per pixel of the latents

    @classmethod
    def of(cls, family: Family) -> DecodeCosts | None:
        """The costs for a family's VAE, counted at two sizes without its weights; None where it is not like
        diffusers' AutoencoderKL."""
        vae: Any = family.meta_components.get("vae")
        if not hasattr(vae, "tiled_decode"):
            return None
        edge, channels = vae.tile_latent_min_size, vae.config.latent_channels
        pixels = edge * edge
        one, two = (_count(vae.decoder, channels, edge, wide) for wide in (edge, 2 * edge))
        quadratic = (two.operations - 2 * one.operations) / (2 * pixels**2)
        return cls(
            linear=one.operations / pixels - quadratic * pixels,
            quadratic=quadratic,
            bytes_per_pixel=one.bytes / pixels * family.dtype_of("vae").itemsize / 4,
            tile=edge,
            step=int(edge * (1 - vae.tile_overlap_factor)),
            picture_bytes=3 * (vae.tile_sample_min_size / edge) ** 2 * family.dtype_of("vae").itemsize,
        )

    def whole(self, high: int, wide: int) -> Cost:
        """The cost of a picture from latents of this size."""
        pixels = high * wide
        return Cost(self.linear * pixels + self.quadratic * pixels**2, self.bytes_per_pixel * pixels)

    def tiled(self, high: int, wide: int) -> Cost:
        """The same in tiles."""
        one = self.whole(min(high, self.tile), min(wide, self.tile))
        if max(high, wide) <= self.tile:
            return one
        tiles = -(-high // self.step) * -(-wide // self.step)
        return Cost(tiles * one.operations, one.bytes + 2 * self.picture_bytes * high * wide)

    def tiles_pay(self, high: int, wide: int, memory: int) -> bool:
        """Whether to decode in tiles: they cost less, or whole it does not fit into the memory, in bytes."""
        whole = self.whole(high, wide)
        return self.tiled(high, wide).operations < whole.operations or whole.bytes > memory


def _count(decoder: Any, channels: int, high: int, wide: int) -> Cost:
    """In float32, on the meta device."""
    latents = torch.empty(1, channels, high, wide, device="meta", dtype=next(decoder.parameters()).dtype)
    counter, largest = FlopCounterMode(display=False), _LargestLayer()  # type: ignore[no-untyped-call]
    with torch.inference_mode(), counter, largest:
        decoder(latents)
    return Cost(counter.get_total_flops(), largest.values * 4)


class _LargestLayer(TorchDispatchMode):
    """Measures the most values that one operation reads and writes."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, torch.Tensor)]
        self.values = max(self.values, sum({id(each): each.numel() for each in tensors}.values()))
        return result
