"""Weights in pinned host memory, from which they are copied to a CUDA device without waiting.

torch rounds each piece of pinned memory up to a power of two: tensors are put into blocks of such sizes, side by side.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import torch

log = logging.getLogger(__name__)

BLOCK_BYTES = 64 * 2**20  # larger tensors have a block each
ALIGNMENT = 512  # bytes, as by torch's allocators


def pinned_bytes(sizes: Iterable[int]) -> int:
    """The memory that tensors of these sizes in bytes take, in this order."""
    return sum(_layout(sizes)[0])


def pinned_like(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Uninitialised tensors in pinned memory, or where that cannot be had in pageable, of these shapes, dtypes and
    memory formats."""
    blocks, places = _layout(tensor.nbytes for tensor in tensors)
    memory = [_block(size) for size in blocks]
    return [_view(memory[block], start, tensor) for (block, start), tensor in zip(places, tensors, strict=True)]


def free_pinned() -> None:
    """Return unused pinned memory to the system; torch keeps it otherwise."""
    empty = getattr(torch._C, "_host_emptyCache", None) or getattr(torch._C, "_accelerator_emptyHostCache", None)
    if empty is not None and torch.cuda.is_available():
        empty()


def _layout(sizes: Iterable[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """The sizes of the blocks, and each tensor's block and offset there."""
    blocks: list[int] = []
    places: list[tuple[int, int]] = []
    current, used = -1, BLOCK_BYTES  # the block that is being filled
    for size in sizes:
        if size > BLOCK_BYTES:
            places.append((len(blocks), 0))
            blocks.append(1 << (size - 1).bit_length())
            continue
        if used + size > BLOCK_BYTES:
            current, used = len(blocks), 0
            blocks.append(BLOCK_BYTES)
        places.append((current, used))
        used += -(-size // ALIGNMENT) * ALIGNMENT
    return blocks, places


def _block(size: int) -> torch.Tensor:
    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
    except RuntimeError as error:  # the system limits it
        log.warning("%d MiB cannot be pinned; copies to the device will wait: %s", size >> 20, error)
        return torch.empty(size, dtype=torch.uint8)


def _view(block: torch.Tensor, start: int, tensor: torch.Tensor) -> torch.Tensor:
    strides = torch.empty_like(tensor, device="meta").stride()  # dense, if the tensor is not
    return block[start : start + tensor.nbytes].view(tensor.dtype).as_strided(tensor.shape, strides)
