"""Copies of weights to a device beside running jobs, which wait for none of them.

A copy from pageable memory waits on the host for all that is queued on its stream: on the engine's stream for an
evaluation, tensor by tensor.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any, Protocol

from darkroom_plugins.deferred import torch

STAGING_BYTES = 64 * 2**20  # of pinned memory, in two halves


class Arrival(Protocol):
    """The end of a copy, as a CUDA event."""

    def synchronize(self) -> None:
        """Wait for it."""


class Uploader:
    """Copies host tensors through buffers in turns: one is filled while the device reads the others."""

    def __init__(
        self,
        device: torch.device,
        allocate: Callable[[], Sequence[torch.Tensor]],
        record: Callable[[], Arrival],
        send: Callable[[torch.Tensor, torch.Tensor], Any] = lambda target, source: target.copy_(source, True),
    ) -> None:
        """`allocate` makes the buffers, pinned, (n,) uint8 of one size; `send` begins a copy to the device; `record`
        gives the arrival of the copies begun so far."""
        self._device, self._allocate, self._record, self._send = device, allocate, record, send
        self._arrivals: dict[int, Arrival] = {}  # by buffer
        self._turn = 0

    @cached_property
    def _buffers(self) -> Sequence[torch.Tensor]:
        return self._allocate()

    def copy(
        self,
        tensor: torch.Tensor,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format | None = None,
    ) -> torch.Tensor:
        """A copy on the device, which may not be complete yet."""
        dtype = dtype or tensor.dtype
        target = torch.empty_like(
            tensor, dtype=dtype, device=self._device, memory_format=memory_format or torch.preserve_format
        )
        if tensor.is_pinned() and tensor.dtype == dtype and tensor.stride() == target.stride():
            self._send(target, tensor)
            return target
        for source, part in zip(*_parts(tensor, target, len(self._buffers[0])), strict=True):
            if part.nbytes <= len(self._buffers[0]):
                self._stage(source, part)
            else:
                part.copy_(source)
        return target

    def _stage(self, source: torch.Tensor, target: torch.Tensor) -> None:
        buffer = self._buffers[self._turn]
        if self._turn in self._arrivals:
            self._arrivals[self._turn].synchronize()  # of what was in the buffer
        # In the target's layout: the device copies it as one block.
        staged = buffer[: target.nbytes].view(target.dtype).as_strided(target.shape, target.stride())
        staged.copy_(source)
        self._send(target, staged)
        self._arrivals[self._turn] = self._record()
        self._turn = (self._turn + 1) % len(self._buffers)


def _parts(
    tensor: torch.Tensor, target: torch.Tensor, most: int
) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
    """Both in parts of at most so many bytes, as far as their first dimension allows."""
    if target.nbytes <= most or target.stride(0) != max(target.stride()):
        return [tensor], [target]
    rows = max(1, most // (target.nbytes // len(target)))
    return tensor.split(rows), target.split(rows)


_active = threading.local()  # .uploader: of the context that this thread is in


@contextmanager
def uploading(device: torch.device) -> Iterator[Uploader | None]:
    """Context manager for loading weights: on CUDA all that is asked of the device in it runs on a stream of its own,
    and is complete when the outermost one ends. Yields what copies tensors there; None on other devices.

    The memory belongs to that stream: the weights may be freed only after all work that uses them is done.
    """
    if device.type != "cuda":
        yield None
        return
    outer: Uploader | None = getattr(_active, "uploader", None)
    if outer is not None:
        yield outer
        return
    stream = _stream_of(device)
    with torch.cuda.device(device), torch.cuda.stream(stream):

        def record() -> Arrival:
            event = torch.cuda.Event(blocking=True)
            event.record(stream)
            return event

        _active.uploader = Uploader(device, _staging, record)
        try:
            yield _active.uploader
        finally:
            _active.uploader = None
            stream.synchronize()  # also after an error: copies may still read the buffers


def _staging() -> list[torch.Tensor]:
    return [torch.empty(STAGING_BYTES // 2, dtype=torch.uint8, pin_memory=True) for _ in range(2)]


@cache
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
