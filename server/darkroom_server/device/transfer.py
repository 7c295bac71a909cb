"""What a CUDA device does while the engine goes on: pictures on their way to the CPU, decoding beside the steps of
others, and how far the engine may be ahead. On a CPU all of it is done at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from darkroom_plugins.errors import NonFinite


@dataclass(frozen=True, slots=True, eq=False)
class PendingImage:
    """A picture on its way from the device, for any thread: who reads it waits for it, and nobody else."""

    _pixels: torch.Tensor  # (h, w, 3) uint8, on the CPU
    _finite: torch.Tensor  # a scalar, on the CPU: whether the values that it was made of are
    _there: Any  # the event of its arrival; None: it is there

    @property
    def ready(self) -> bool:
        """Whether it can be read at once."""
        return self._there is None or bool(self._there.query())

    def wait(self) -> None:
        """Return when it can be read."""
        if self._there is not None:
            self._there.synchronize()

    def read(self) -> Any:
        """(h, w, 3) uint8.

        :raises NonFinite: the model made values that are not finite
        """
        self.wait()
        if not self._finite:
            raise NonFinite("the model's result has values that are not finite")
        return self._pixels.numpy()


def to_pictures(images: torch.Tensor) -> list[PendingImage]:
    """(n, 3, h, w) in -1 to 1 as pictures, rounded as diffusers' VaeImageProcessor does."""
    finite = images.isfinite().flatten(1).all(dim=1)
    scaled = (images.float() * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    pixels, there = (scaled * 255).round().to(torch.uint8), None
    if images.is_cuda:
        pixels, finite = _leaving(pixels), _leaving(finite)
        there = torch.cuda.Event(blocking=True)
        there.record(torch.cuda.current_stream(images.device))
    else:
        pixels, finite = pixels.cpu(), finite.cpu()
    return [PendingImage(*each, there) for each in zip(pixels, finite, strict=True)]


def _leaving(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


@contextmanager
def beside(device: torch.device, tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """A context in which what is asked of the device, given these, is done beside what is asked of it later. Only what
    reads nothing else that comes and goes may be done in it, and what it makes is read as `PendingImage`."""
    if device.type != "cuda":
        yield
        return
    stream = _other_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    for tensor in tensors:
        tensor.record_stream(stream)  # its memory is not used again before
    with torch.cuda.stream(stream):
        yield


@cache
def _other_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def settle(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it: weights may be in use beside until then."""
    if device.type == "cuda":
        with suppress(RuntimeError):  # of a lost device, as who uses it next is told
            torch.cuda.synchronize(device)


class LaunchLimiter:
    """Keeps the engine one evaluation ahead of each device: enough for it to have work at all times, and no more, so
    that what is cancelled or comes in is minded with the next step."""

    def __init__(self) -> None:
        self._last: dict[torch.device, torch.cuda.Event] = {}

    def keep(self, device: torch.device) -> None:
        """An evaluation was asked of this device: wait for the one before it."""
        if device.type != "cuda":
            return
        before, asked = self._last.get(device), torch.cuda.Event(blocking=True)
        asked.record(torch.cuda.current_stream(device))
        self._last[device] = asked
        if before is not None:
            before.synchronize()
