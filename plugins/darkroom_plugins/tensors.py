"""Host-to-device copies."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a CPU tensor to a device. On CUDA from pinned memory, asynchronously: a plain `to` would wait for all
    kernels launched before."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def constant(values: Sequence[int] | Sequence[float], device: torch.device) -> torch.Tensor:
    """A 1-D tensor of these numbers, int64 or float32, for an evaluation. Kept for the next one with equal numbers, so
    that they are copied once: nothing may write into it."""
    return _constant(tuple(values), device, type(values[0]).__name__)


@lru_cache(maxsize=1024)
def _constant(values: tuple[Hashable, ...], device: torch.device, _: str) -> torch.Tensor:
    """By the name of their type, too, as 1 == 1.0."""
    import torch

    with torch.inference_mode(False), torch.no_grad():  # tensors with version counters
        return to_device(torch.tensor(values), device)
