"""torch.compile in the background, with eager fallback: no job waits for the compiler."""

from __future__ import annotations

import copy
import functools
import logging
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
from darkroom_server.networks.compile_process import CompilerKilled, compile_elsewhere
from darkroom_server.networks.dynamo import compile_lazily, configure_dynamo, too_many_versions
from darkroom_server.networks.tensors import mapped

log = logging.getLogger(__name__)

COMPILER = "compiler"  # thread name
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


def runs_eagerly() -> bool:
    """Whether this is inside of `eagerly`."""
    return _eagerly.get()


def patch_watch(network: nn.Module) -> Callable[[], bool]:
    """Tells from now on whether the network is patched: by hooks (LoRA), or by layers in place of its own (DeepCache).
    Modules never replace what it looks at: to walk a network takes milliseconds, as long as to launch a tenth of it."""
    modules = dict(network._modules)
    hooks = [hooks for module in network.modules() for hooks in (module._forward_hooks, module._forward_pre_hooks)]
    return lambda: any(hooks) or network._modules != modules


def is_compiling() -> bool:
    """Whether a compiler thread is running."""
    return any(thread.name == COMPILER for thread in threading.enumerate())


class _Compiled:
    def __init__(self, network: nn.Module, background: bool, advice: str) -> None:
        self._advice = advice and f"; {advice}"
        self._eager, self._background = network.forward, background
        self._is_patched = patch_watch(network)
        self._copy = _weight_sharing_copy(network)
        self._compiled = compile_lazily(self._copy)
        self._kinds: set[Hashable] = set()  # of calls, for which another process has compiled, or cannot
        self._too_many = too_many_versions()
        self._compiled_shapes: set[Hashable] = set()
        self._failed_shapes: set[Hashable] = set()
        self._compiling = threading.Lock()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if runs_eagerly() or self._is_patched():
            return self._eager(*args, **kwargs)
        threads = torch.get_num_threads()  # for which compiled code is made
        shapes = threads, shapes_of((args, kwargs))
        if self._to_be_compiled(shapes) and self._compiling.acquire(blocking=False):
            self._start(threads, shapes, args, kwargs)
        if shapes not in self._compiled_shapes:
            return self._eager(*args, **kwargs)
        configure_dynamo()
        try:
            return self._compiled(*args, **kwargs)
        except self._too_many as error:
            self._give_up(shapes, error)
            return self._eager(*args, **kwargs)

    def _to_be_compiled(self, shapes: Hashable) -> bool:
        if shapes in self._compiled_shapes or shapes in self._failed_shapes:
            return False
        return bool(self._compiled_shapes) or len(self._failed_shapes) < MAX_FAILURES

    def _start(self, threads: int, shapes: Hashable, args: Any, kwargs: Any) -> None:
        if not self._background:
            self._compile(shapes, args, kwargs)
            return
        try:
            copies = mapped((args, kwargs), copied)  # the engine may overwrite its tensors meanwhile
            threading.Thread(
                target=self._in_background, args=(threads, shapes, *copies), name=COMPILER, daemon=True
            ).start()
        except BaseException:
            self._compiling.release()
            raise

    def _in_background(self, threads: int, shapes: Hashable, args: Any, kwargs: Any) -> None:
        lower_thread_priority()
        torch.set_num_threads(threads)
        kind = threads, _kind((args, kwargs))
        if kind not in self._kinds:
            try:
                _fill_caches(self._copy, args, kwargs)
            except CompilerKilled as error:
                self._give_up(shapes, error)
                self._compiling.release()
                return
            self._kinds.add(kind)
        self._compile(shapes, args, kwargs)

    @torch.inference_mode()
    def _compile(self, shapes: Hashable, args: Any, kwargs: Any) -> None:
        began = time.monotonic()
        try:
            configure_dynamo()
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


def _fill_caches(network: nn.Module, args: Any, kwargs: Any) -> None:
    """Compile in another process, so that this one needs only load the code. Where that fails this one compiles.

    :raises CompilerKilled: what ended the other one might end this one
    """
    try:
        compile_elsewhere(network, args, kwargs)
    except CompilerKilled:
        raise
    except Exception as error:
        log.info("compiling in the server's own process: %s", error)


def _weight_sharing_copy(network: nn.Module) -> nn.Module:
    """A copy of the modules that shares the parameter and buffer dicts, without later hooks: the compiler can trace it
    while the network runs."""
    tables = [table for module in network.modules() for table in (module._parameters, module._buffers)]
    return copy.deepcopy(network, {id(table): table for table in tables})


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that is an inference tensor where the tensor is one, which compiled code depends on."""
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        return tensor.clone()


def shapes_of(value: Any) -> Hashable:
    """What compiled code may be specialised on: tensors by shape, stride, dtype and device, all else by value."""
    return _frozen(value, lambda tensor: (tensor.shape, tensor.stride()))


def _kind(value: Any) -> Hashable:
    """What it is specialised on as a rule: of sizes whether they are one."""
    return _frozen(value, lambda tensor: tuple(size == 1 for size in tensor.shape))


def _frozen(value: Any, sizes: Callable[[torch.Tensor], Hashable]) -> Hashable:
    if isinstance(value, torch.Tensor):
        return sizes(value), value.dtype, value.device, value.is_inference()
    if isinstance(value, Mapping):
        return tuple((name, _frozen(each, sizes)) for name, each in value.items())
    if isinstance(value, list | tuple):
        return tuple(_frozen(each, sizes) for each in value)
    return value  # type: ignore[no-any-return]
