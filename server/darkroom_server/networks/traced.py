"""Traced forwards (torch.jit.trace): no Python overhead, which is a third of an evaluation of small pictures on a CPU.

Launching the some 600 operations of a UNet's evaluation from Python takes 7 to 14 ms, more than computing a few rows of
small latents. A trace launches them without Python. It is made in a background thread, per kind of input, and used once
verified bit-exact against the eager network. A trace takes about 16 MiB, which torch never frees: so their number is
capped, and a model's traces outlive its unloading.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import logging
import threading
import time
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import nn

from darkroom_plugins.fixed_outputs import FixedOutput
from darkroom_server.device.threads import background
from darkroom_server.networks.tensors import mapped, tensors

log = logging.getLogger(__name__)

LONGEST = 0.25  # seconds per evaluation: above, Python's overhead is negligible
MOST = 12  # traces in this process, failed ones included
MANY = 64  # rows, from which diffusers' upsampling takes another code path

Trace: TypeAlias = Callable[[list[torch.Tensor]], Any]
Traces: TypeAlias = dict[Hashable, Trace | None]  # by kind of input; None: in progress, or rejected

_traces: WeakKeyDictionary[nn.Module, Traces] = WeakKeyDictionary()
_count = 0
_tracing = threading.Lock()  # one trace at a time, so that the process's exit waits for one at most

warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]  # traces are verified


def traced(network: nn.Module, kept_with: nn.Module) -> Callable[..., Any]:
    """The traced forward of a network, for any batch size: the first tensor argument has the rows. Traces live as long
    as `kept_with`, a module shared by all networks of this structure and configuration.

    The network runs eagerly while it is patched (hooks, replaced layers or attention processors), and for inputs
    without a trace. Its forward must be its class's.
    """
    forward = _Traced(network, _traces.setdefault(kept_with, {}))
    rowwise = functools.wraps(network.forward)(lambda *args, **kwargs: forward(*args, **kwargs))
    rowwise.supports_fixed_outputs = True  # type: ignore[attr-defined]  # see FixedOutput
    return rowwise


@dataclass(frozen=True, slots=True)
class _Call:
    """One call's arguments."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    fixed: Mapping[int, torch.Tensor]  # fixed outputs of layers, by the layer's number
    tensors: list[torch.Tensor]  # all tensors, in traversal order

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any], fixed: Mapping[int, torch.Tensor]) -> _Call:
        found: list[torch.Tensor] = []
        mapped((args, kwargs, fixed), found.append)
        return cls(args, kwargs, fixed, found)

    @property
    def rows(self) -> int:
        return len(self.tensors[0])

    @property
    def kind(self) -> Hashable:
        """The key of a trace: everything but tensor values and the exact number of rows. None: not hashable, or no
        rows."""
        if not self.tensors or not self.tensors[0].dim():
            return None
        amount = "one" if self.rows == 1 else "few" if self.rows < MANY else "many"
        try:
            return amount, self._frozen((self.args, self.kwargs, self.fixed))
        except TypeError:
            return None

    def _frozen(self, value: Any) -> Hashable:
        if isinstance(value, torch.Tensor):
            by_row = self._by_row(value)
            return by_row, value.shape[by_row:], value.dtype, value.device
        if isinstance(value, Mapping):
            return tuple((name, self._frozen(each)) for name, each in value.items())
        if isinstance(value, list | tuple):
            return type(value), *map(self._frozen, value)
        if value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device):
            return type(value), value
        raise TypeError

    def _by_row(self, tensor: torch.Tensor) -> bool:
        return tensor.dim() > 0 and len(tensor) == self.rows

    def mapped(self, function: Callable[[torch.Tensor], torch.Tensor]) -> _Call:
        """This call with mapped tensors."""
        return _Call.of(*mapped((self.args, self.kwargs, self.fixed), function))

    def with_rows(self, count: int) -> _Call:
        """This call with `count` rows, repeated cyclically where it has fewer."""
        numbers = [number % self.rows for number in range(count)]
        return self.mapped(lambda tensor: tensor[numbers] if self._by_row(tensor) else tensor)


class _Traced:
    def __init__(self, network: nn.Module, traces: Traces) -> None:
        self._network, self._traces = network, traces
        self._modules = [(module, _parts(module)) for module in network.modules()]
        self._places = [(table, name) for table, name, _ in tensors(network)]
        self._copy = _WeightSharingCopy(network)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        fixed = self._fixed_outputs()
        if fixed is None:
            return self._eager(*args, **kwargs)
        call = _Call.of(args, kwargs, fixed)
        kind = call.kind
        if kind is None:
            return self._eager(*args, **kwargs)
        if (trace := self._traces.get(kind)) is None:
            return self._run_eagerly(kind, call)
        try:
            return _run(trace, call, self._weights())
        except Exception as error:
            made = self._eager(*args, **kwargs)  # raises errors that are not the trace's fault
            log.warning("a trace of %s failed, and is not used again", self._name, exc_info=error)
            self._traces[kind] = None
            return made

    def _eager(self, *args: Any, **kwargs: Any) -> Any:
        return type(self._network).forward(self._network, *args, **kwargs)

    @property
    def _name(self) -> str:
        return type(self._network).__name__

    def _fixed_outputs(self) -> dict[int, torch.Tensor] | None:
        """Fixed outputs by the layer's number; None: the network is patched."""
        fixed = {}
        for number, (module, parts) in enumerate(self._modules):
            changed = module._forward_hooks or module._forward_pre_hooks or _parts(module) != parts
            forward = vars(module).get("forward") if number else None  # the network's own is the traced forward
            if changed or not (forward is None or isinstance(forward, FixedOutput)):
                return None
            if forward is not None:
                fixed[number] = forward.value
        return fixed

    def _weights(self) -> list[torch.Tensor]:
        return [table[name] for table, name in self._places]

    def _run_eagerly(self, kind: Hashable, call: _Call) -> Any:
        global _count
        began = time.monotonic()
        made = self._eager(*call.args, **call.kwargs)
        quick = time.monotonic() - began < LONGEST
        if quick and kind not in self._traces and _count < MOST and _tracing.acquire(blocking=False):
            try:
                background().submit(self._trace, kind, call.mapped(torch.clone))
            except Exception:  # out of memory for the copies
                _tracing.release()
                return made
            self._traces.setdefault(kind, None)
            _count += 1
        return made

    @torch.inference_mode()
    def _trace(self, kind: Hashable, call: _Call) -> None:
        began = time.monotonic()
        try:
            trace, weights = self._copy.trace(call, self._weights()), self._weights()
            for other in map(call.with_rows, _row_counts_to_verify(call.rows)):
                if not _same(_run(trace, other, weights), self._copy.run(other, weights)):
                    raise ValueError(f"traced with {call.rows} rows, it differs with {other.rows}")
            self._traces[kind] = trace
            log.info("traced %s for one more kind of input in %.2f s", self._name, time.monotonic() - began)
        except Exception as error:  # tracing failed; fall back to eager
            log.info("no trace of %s: %s", self._name, str(error).strip().partition("\n")[0])
        finally:
            _tracing.release()


class _WeightSharingCopy:
    """A copy of the modules that shares the weights, for the tracing thread: without temporary patches."""

    def __init__(self, network: nn.Module) -> None:
        self._network = copy.deepcopy(network, {id(weight): weight for *_, weight in tensors(network)})
        self._modules = [*self._network.modules()]
        self._places = [(table, name) for table, name, _ in tensors(self._network)]

    def trace(self, call: _Call, weights: Sequence[torch.Tensor]) -> Trace:
        """Trace a call; tensors and weights become the trace's inputs."""

        def run(inputs: list[torch.Tensor]) -> Any:
            taken = iter(inputs)
            return self.run(call.mapped(lambda _: next(taken)), [*taken])

        trace: Any = torch.jit.trace(run, ([*call.tensors, *weights],), check_trace=False)
        vars(trace).clear()  # else it keeps these layers and their weights alive
        return trace  # type: ignore[no-any-return]

    def run(self, call: _Call, weights: Sequence[torch.Tensor]) -> Any:
        """Run the copy eagerly with these weights."""
        for (table, name), weight in zip(self._places, weights, strict=True):
            table[name] = weight
        with contextlib.ExitStack() as changed:
            for number, value in call.fixed.items():
                layer = vars(self._modules[number])
                layer["forward"] = lambda *_, value=value: value
                changed.callback(layer.pop, "forward")
            return self._network(*call.args, **call.kwargs)


def _run(trace: Trace, call: _Call, weights: Sequence[torch.Tensor]) -> Any:
    # The JIT's optimiser slows the first calls, and gains nothing on a CPU.
    with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        return trace([*call.tensors, *weights])


def _parts(module: nn.Module) -> list[Any]:
    """Children and attention processor: whatever a patch may replace."""
    return [*module._modules.values(), vars(module).get("processor")]  # diffusers' attention processor


def _row_counts_to_verify(rows: int) -> Sequence[int]:
    """The numbers of rows with which to verify a trace of `rows` rows."""
    return (1,) if rows == 1 else (rows, 2, rows + 1) if rows < MANY else (rows, rows + 1)


def _same(made: Any, expected: Any) -> bool:
    both = [each if isinstance(each, tuple) else (each,) for each in (made, expected)]
    return all(itertools.starmap(torch.equal, zip(*both, strict=True)))
