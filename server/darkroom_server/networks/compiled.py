"""A network's forward, compiled beside the engine: no job waits for a compiler."""

from __future__ import annotations

import copy
import functools
import logging
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import nn

from darkroom_server.device.threads import lower_thread_priority
from darkroom_server.errors import OutOfMemory, classify
from darkroom_server.networks.tensors import mapped

log = logging.getLogger(__name__)

COMPILER = "compiler"  # the name of its threads


def compiled(network: nn.Module, background: bool) -> Callable[..., Any]:
    """Its forward, for batches of any size. With `background` arguments of new shapes go through the network as it is
    until a thread has compiled it for them, or found that what it has compiled takes them; else they wait for that.

    Compiled code runs no hooks that come later, such as those of LoRAs, and no layers that are changed for a moment,
    as for feature reuse: while there are any, the network runs as it is. It does so for good when it does not compile.
    """
    forward = _Compiled(network, background)
    return functools.wraps(network.forward)(lambda *args, **kwargs: forward(*args, **kwargs))


def at_work() -> bool:
    """Whether a compiler is."""
    return any(thread.name == COMPILER for thread in threading.enumerate())


class _Compiled:
    def __init__(self, network: nn.Module, background: bool) -> None:
        self._network, self._plain, self._background = network, network.forward, background
        self._modules = dict(network._modules)
        self._compiled = torch.compile(_twin(network), dynamic=True)
        self._known: set[Hashable] = set()  # the shapes that it is compiled for
        self._at_work = threading.Lock()
        self._broken = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._broken or self._changed():
            return self._plain(*args, **kwargs)
        shapes = _shapes((args, kwargs))
        if shapes not in self._known and self._at_work.acquire(blocking=False):
            self._begin(shapes, args, kwargs)
        return (self._compiled if shapes in self._known else self._plain)(*args, **kwargs)

    def _begin(self, shapes: Hashable, args: Any, kwargs: Any) -> None:
        if not self._background:
            self._try(shapes, args, kwargs)
            return
        try:
            given = mapped((args, kwargs), _copied)  # as their owner may write to them
            threading.Thread(target=self._try_aside, args=(shapes, *given), name=COMPILER, daemon=True).start()
        except BaseException:
            self._at_work.release()
            raise

    def _changed(self) -> bool:
        hooked = any(module._forward_hooks or module._forward_pre_hooks for module in self._network.modules())
        return hooked or self._network._modules != self._modules

    def _try_aside(self, *call: Any) -> None:
        lower_thread_priority()
        self._try(*call)

    @torch.inference_mode()
    def _try(self, shapes: Hashable, args: Any, kwargs: Any) -> None:
        began = time.monotonic()
        try:
            self._compiled(*args, **kwargs)
            self._known.add(shapes)
            log.info("the denoiser is ready compiled for one more shape, after %.1f s", time.monotonic() - began)
        except Exception as error:  # whatever a compiler raises: the network is there without it
            if isinstance(classify(error), OutOfMemory):
                log.info("there is no room to compile now; it is tried again")
                return
            self._broken = True
            log.warning("the denoiser does not compile, and runs as it is", exc_info=error)
        finally:
            self._at_work.release()


def _twin(network: nn.Module) -> nn.Module:
    """The same layers with the same tables of weights, but no hooks that come later: a compiler may look at it while
    the network is at work."""
    tables = [table for module in network.modules() for table in (module._parameters, module._buffers)]
    return copy.deepcopy(network, {id(table): table for table in tables})


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that is an inference tensor where the tensor is one, which compiled code depends on."""
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        return tensor.clone()


def _shapes(value: Any) -> Hashable:
    """What compiled code may depend on: of tensors all but the values."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype, value.device, value.is_inference()
    if isinstance(value, Mapping):
        return tuple((name, _shapes(each)) for name, each in value.items())
    if isinstance(value, list | tuple):
        return tuple(_shapes(each) for each in value)
    return value  # type: ignore[no-any-return]
