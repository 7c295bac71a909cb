"""CUDA graphs: an evaluation of a few rows, recorded once and launched as a whole from then on.

Python takes longer to launch the hundreds of operations of a UNet than a GPU takes to compute a few rows. A graph
launches all of them at once, always on the tensors of its recording: a call copies its arguments into these, and the
output out of them.
"""

from __future__ import annotations

import functools
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeAlias

import torch
from torch import nn

from darkroom_server.networks.compiled import copied, patch_watch, runs_eagerly, shapes_of
from darkroom_server.networks.tensors import mapped

log = logging.getLogger(__name__)

# Of the first argument, (rows, channels, h, w), rows times positions: 8 rows of Stable Diffusion 1.5. Above, the device
# takes longer than Python, and a graph keeps much memory.
MAX_POSITIONS = 8 * 64 * 64
MOST = 16  # kinds of calls that are known of a network; the one that was used least recently leaves


class Recording(Protocol):
    """What a call did."""

    output: Any  # written by each replay

    def replay(self) -> None:
        """Do it again, on the same tensors."""


Record: TypeAlias = Callable[[Callable[[], Any]], Recording]


def recorder(device: torch.device) -> Record | None:
    """What records calls on this device; None: it has no graphs. One for each network: recordings of one share memory,
    so that none may run beside another."""
    if device.type != "cuda":
        return None
    return functools.partial(_CudaRecording, device=device, pool=torch.cuda.graph_pool_handle())


def graphed(network: nn.Module, record: Record) -> Callable[..., Any]:
    """The forward of a network whose weights stay where they are. A kind of call runs eagerly the first time, which
    chooses kernels; the second time it is recorded. Large calls run eagerly, as do all while the network is patched
    (`patch_watch`)."""
    forward = _Graphed(network, record)
    return functools.wraps(network.forward)(lambda *args, **kwargs: forward(*args, **kwargs))


class _CudaRecording:
    def __init__(self, run: Callable[[], Any], device: torch.device, pool: Any) -> None:
        self._graph, stream = torch.cuda.CUDAGraph(), _stream_of(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.device(device), torch.cuda.stream(stream):
            # Other threads load weights and copy pictures meanwhile.
            self._graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                self.output = run()
            finally:
                self._graph.capture_end()

    def replay(self) -> None:
        self._graph.replay()


@functools.cache
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


class _Graph:
    """A recorded call, for others of its kind."""

    def __init__(self, run: Callable[..., Any], record: Record, args: Any, kwargs: Any) -> None:
        self._inputs: list[torch.Tensor] = []
        args, kwargs = mapped((args, kwargs), self._buffer)
        self._recording = record(lambda: run(*args, **kwargs))

    def _buffer(self, tensor: torch.Tensor) -> torch.Tensor:
        self._inputs.append(copied(tensor))
        return self._inputs[-1]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given: list[torch.Tensor] = []
        mapped((args, kwargs), given.append)
        for buffer, tensor in zip(self._inputs, given, strict=True):
            buffer.copy_(tensor)
        self._recording.replay()
        return mapped(self._recording.output, torch.clone)  # the next replay overwrites it


class _Graphed:
    def __init__(self, network: nn.Module, record: Record) -> None:
        self._eager, self._record = network.forward, record
        self._is_patched = patch_watch(network)
        self._known: OrderedDict[Hashable, Callable[..., Any] | None] = OrderedDict()  # by kind; None: seen once

    def __call__(self, latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        positions = latents[:, 0].numel()
        if runs_eagerly() or self._is_patched() or positions > MAX_POSITIONS:
            return self._eager(latents, *args, **kwargs)
        return self._of(shapes_of((latents, args, kwargs)), (latents, *args), kwargs)(latents, *args, **kwargs)

    def _of(self, kind: Hashable, args: Any, kwargs: Any) -> Callable[..., Any]:
        """What runs a call of this kind."""
        if kind not in self._known:
            self._known[kind] = None
            if len(self._known) > MOST:
                self._known.popitem(last=False)
            return self._eager
        self._known.move_to_end(kind)
        run = self._known[kind]
        if run is None:
            run = self._known[kind] = self._recorded(args, kwargs)
        return run

    def _recorded(self, args: Any, kwargs: Any) -> Callable[..., Any]:
        try:
            return _Graph(self._eager, self._record, args, kwargs)
        except Exception as error:  # out of memory; or an operation that cannot be recorded
            log.warning("no graph of one more kind of call of the denoiser: it runs eagerly", exc_info=error)
            return self._eager
