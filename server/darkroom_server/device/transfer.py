"""Asynchronous device-to-host transfers, side streams, and the launch limiter. On a CPU all of it is synchronous."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from darkroom_plugins.errors import NonFinite


@dataclass(frozen=True, slots=True, eq=False)
class PendingImage:
    """An image whose device-to-host copy may be in flight. Readable from any thread; only its readers wait."""

    _pixels: torch.Tensor  # (h, w, 3) uint8, on the CPU
    _finite: torch.Tensor  # scalar bool, on the CPU: no NaN or infinity in the decoded image
    _arrival: Any  # the CUDA event after the copy; None: no copy in flight

    @property
    def ready(self) -> bool:
        """Whether `read` would not wait."""
        return self._arrival is None or bool(self._arrival.query())

    @property
    def nbytes(self) -> int:
        """Its size in memory."""
        return self._pixels.nbytes

    def wait(self) -> None:
        """Block until the copy is complete."""
        if self._arrival is not None:
            self._arrival.synchronize()

    def read(self) -> Any:
        """(h, w, 3) uint8.

        :raises NonFinite: the decoded image has NaN or infinite values
        """
        self.wait()
        if not self._finite:
            raise NonFinite("the model's result has values that are not finite")
        return self._pixels.numpy()


def to_pictures(images: torch.Tensor) -> list[PendingImage]:
    """(n, 3, h, w) in [-1, 1] to 8-bit images, rounded as by diffusers' VaeImageProcessor."""
    finite = images.isfinite().flatten(1).all(dim=1)
    scaled = (images.float() * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    pixels, arrival = (scaled * 255).round().to(torch.uint8), None
    if images.is_cuda:
        pixels, finite = _copy_to_host(pixels), _copy_to_host(finite)
        arrival = torch.cuda.Event(blocking=True)
        arrival.record(torch.cuda.current_stream(images.device))
    else:
        pixels, finite = pixels.cpu(), finite.cpu()
    return [PendingImage(*each, arrival) for each in zip(pixels, finite, strict=True)]


def _copy_to_host(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


@contextmanager
def side_stream(device: torch.device, tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Context manager: kernels launched inside run on a side stream after `tensors` are ready. They may read no other
    tensor that can be freed meanwhile; results leave as `PendingImage`."""
    if device.type != "cuda":
        yield
        return
    stream = _stream_of(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    for tensor in tensors:
        tensor.record_stream(stream)  # the allocator does not reuse its memory before the side stream is done
    with torch.cuda.stream(stream):
        yield


@cache
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def settle(device: torch.device) -> None:
    """Synchronise all streams of the device: a side stream may still read weights that are about to move."""
    if device.type == "cuda":
        with suppress(RuntimeError):  # a lost device is reported at its next use
            torch.cuda.synchronize(device)


class DecodeLimiter:
    """Bounds the pictures whose decoding on a side stream was launched: models of few steps finish samples faster than
    the device decodes them, and such pictures can neither be cancelled nor freed."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._under_way: deque[PendingImage] = deque()  # oldest first

    def add(self, pictures: Iterable[PendingImage]) -> None:
        """Waits for the oldest pictures while more than `most` are under way."""
        self._under_way.extend(pictures)
        while self._under_way and (self._under_way[0].ready or len(self._under_way) > self._most):
            self._under_way.popleft().wait()


class LaunchLimiter:
    """Lets the CPU run at most one evaluation ahead of the GPU: the GPU stays busy, and cancellations and new jobs
    take effect with the next step."""

    def __init__(self) -> None:
        self._last: dict[torch.device, torch.cuda.Event] = {}

    def keep(self, device: torch.device) -> None:
        """To be called after each launch of an evaluation: waits for the previous one."""
        if device.type != "cuda":
            return
        previous, launched = self._last.get(device), torch.cuda.Event(blocking=True)
        launched.record(torch.cuda.current_stream(device))
        self._last[device] = launched
        if previous is not None:
            previous.synchronize()
