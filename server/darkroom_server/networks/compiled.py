"""torch.compile in the background, with eager fallback: no job waits for the compiler."""

from __future__ import annotations

import copy
import functools
import logging
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from darkroom_server.device.threads import lower_thread_priority
from darkroom_server.errors import OutOfMemory, classify
from darkroom_server.networks.tensors import mapped

log = logging.getLogger(__name__)

COMPILER = "compiler"  # thread name
# Compiled versions of one code object, which all networks of a class share. Beyond torch's own limit of 8 a network
# runs eagerly for good, and nothing says so.
MAX_VERSIONS = 1024
MAX_FAILURES = 3  # shapes that do not compile before any does: then no other is tried

_eagerly = ContextVar("_eagerly", default=False)  # each engine's own: a process may have several


def compiled(network: nn.Module, background: bool, advice: str = "") -> Callable[..., Any]:
    """The compiled forward of a network, for any batch size. With `background`, arguments of new shapes run eagerly
    until a background thread has compiled for them, or found the compiled code general enough; else they wait.

    Compiled code ignores later hooks (LoRA) and temporarily replaced layers (DeepCache): while there are any, the
    network runs eagerly. So it does for good with shapes that do not compile: the log says it, and adds `advice`.
    """
    forward = _Compiled(network, background, advice)
    return functools.wraps(network.forward)(lambda *args, **kwargs: forward(*args, **kwargs))


@contextmanager
def eagerly() -> Iterator[None]:
    """Context manager on an engine's thread: its networks run eagerly. Compiled code rounds otherwise, and when it is
    there is a matter of time."""
    token = _eagerly.set(True)
    try:
        yield
    finally:
        _eagerly.reset(token)


def is_compiling() -> bool:
    """Whether a compiler thread is running."""
    return any(thread.name == COMPILER for thread in threading.enumerate())


class _Compiled:
    def __init__(self, network: nn.Module, background: bool, advice: str) -> None:
        self._advice = advice and f"; {advice}"
        self._network, self._eager, self._background = network, network.forward, background
        self._modules = dict(network._modules)
        # Modules never replace these: to walk a network takes milliseconds, as long as to launch a tenth of it.
        self._hooks = [
            hooks for module in network.modules() for hooks in (module._forward_hooks, module._forward_pre_hooks)
        ]
        self._compiled = torch.compile(_weight_sharing_copy(network), dynamic=True)
        self._too_many = _too_many_versions()
        self._compiled_shapes: set[Hashable] = set()
        self._failed_shapes: set[Hashable] = set()
        self._compiling = threading.Lock()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _eagerly.get() or self._is_patched():
            return self._eager(*args, **kwargs)
        shapes = _shapes((args, kwargs))
        if self._to_be_compiled(shapes) and self._compiling.acquire(blocking=False):
            self._start(shapes, args, kwargs)
        if shapes not in self._compiled_shapes:
            return self._eager(*args, **kwargs)
        _raise_limits()
        try:
            return self._compiled(*args, **kwargs)
        except self._too_many as error:
            self._give_up(shapes, error)
            return self._eager(*args, **kwargs)

    def _to_be_compiled(self, shapes: Hashable) -> bool:
        if shapes in self._compiled_shapes or shapes in self._failed_shapes:
            return False
        return bool(self._compiled_shapes) or len(self._failed_shapes) < MAX_FAILURES

    def _start(self, shapes: Hashable, args: Any, kwargs: Any) -> None:
        if not self._background:
            self._compile(shapes, args, kwargs)
            return
        try:
            copies = mapped((args, kwargs), _copied)  # the engine may overwrite its tensors meanwhile
            threading.Thread(target=self._in_background, args=(shapes, *copies), name=COMPILER, daemon=True).start()
        except BaseException:
            self._compiling.release()
            raise

    def _is_patched(self) -> bool:
        return any(self._hooks) or self._network._modules != self._modules

    def _in_background(self, *call: Any) -> None:
        lower_thread_priority()
        self._compile(*call)

    @torch.inference_mode()
    def _compile(self, shapes: Hashable, args: Any, kwargs: Any) -> None:
        began = time.monotonic()
        try:
            _raise_limits()
            self._compiled(*args, **kwargs)
            self._compiled_shapes.add(shapes)
            log.info("compiled the denoiser for one more shape in %.1f s", time.monotonic() - began)
        except Exception as error:  # compilation failed; fall back to eager
            if isinstance(classify(error), OutOfMemory):
                log.info("out of memory while compiling; will retry")
                return
            self._give_up(shapes, error)
        finally:
            self._compiling.release()

    def _give_up(self, shapes: Hashable, error: Exception) -> None:
        self._failed_shapes.add(shapes)
        self._compiled_shapes.discard(shapes)
        message = "the denoiser does not compile for one more shape; it runs eagerly there%s"
        log.warning(message, self._advice, exc_info=error)


def _raise_limits() -> None:
    """Raise dynamo's limits, and make hitting them an error, for this thread: recent torch has them by thread."""
    from torch._dynamo import config as dynamo

    config: Any = dynamo
    limit, fail = "recompile_limit", "fail_on_recompile_limit_hit"
    if not hasattr(config, limit):  # torch 2.6
        limit, fail = "cache_size_limit", "fail_on_cache_limit_hit"
    if getattr(config, limit) != MAX_VERSIONS:
        setattr(config, limit, MAX_VERSIONS)
        setattr(config, f"accumulated_{limit}", sys.maxsize)  # counts those of networks that have gone, too
        setattr(config, fail, True)


def _too_many_versions() -> type[Exception]:
    """What dynamo raises beyond its limits."""
    from torch._dynamo import exc

    found: Any = getattr(exc, "FailOnRecompileLimitHit", None) or vars(exc)["FailOnCacheLimitHit"]  # torch 2.6
    return found  # type: ignore[no-any-return]


def _weight_sharing_copy(network: nn.Module) -> nn.Module:
    """A copy of the modules that shares the parameter and buffer dicts, without later hooks: the compiler can trace it
    while the network runs."""
    tables = [table for module in network.modules() for table in (module._parameters, module._buffers)]
    return copy.deepcopy(network, {id(table): table for table in tables})


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that is an inference tensor where the tensor is one, which compiled code depends on."""
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        return tensor.clone()


def _shapes(value: Any) -> Hashable:
    """What compiled code may be specialised on: tensors by shape, stride, dtype and device, all else by value."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype, value.device, value.is_inference()
    if isinstance(value, Mapping):
        return tuple((name, _shapes(each)) for name, each in value.items())
    if isinstance(value, list | tuple):
        return tuple(_shapes(each) for each in value)
    return value  # type: ignore[no-any-return]
