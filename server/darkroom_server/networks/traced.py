"""A network's forward without Python between its operations, which it is a third of for small pictures on a CPU.

Python asks for some 600 operations in an evaluation of a UNet, which takes 7 to 14 ms, more than a few rows of small
latents take to be computed. A trace asks for the same ones without. It is made beside the engine, for inputs of each
kind, and used once it was seen to make what the network makes, to the last bit. A trace takes about 16 MiB, until its
network goes. torch.jit.trace is not what makes it, as that would keep each trace for as long as the process lives.
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
from weakref import WeakValueDictionary

import torch
from torch import nn

from darkroom_plugins.fixed_outputs import FixedOutput
from darkroom_server.device.threads import background
from darkroom_server.networks.tensors import mapped, tensors

log = logging.getLogger(__name__)

LONGEST = 0.25  # seconds of an evaluation: of one that takes longer, Python's part is not worth a trace
MOST = 12  # traces of all networks in memory, of use or not
MANY = 64  # rows, from which upsampling in diffusers goes another way

Trace: TypeAlias = Callable[[list[torch.Tensor]], Any]

enabled = True  # whether traces are made and used
alive: WeakValueDictionary[int, _Traced] = WeakValueDictionary()  # the traced forwards in memory, by their identity
_at_work = threading.Lock()  # one at a time, so that the end of the process does not wait for many

warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]  # all is checked


def traced(network: nn.Module) -> Callable[..., Any]:
    """Its forward, which takes rows: tensors of any number of them, first.

    Whatever is changed about the network (hooks, layers and attention processors in others' places) is minded by
    running it as it is, as are inputs that there is no trace for yet. Its forward has to be that of its class.
    """
    forward = _Traced(network)
    alive[id(forward)] = forward
    taking = functools.wraps(network.forward)(lambda *args, **kwargs: forward(*args, **kwargs))
    taking.supports_fixed_outputs = True  # type: ignore[attr-defined]  # see FixedOutput
    return taking


@dataclass(frozen=True, slots=True)
class _Call:
    """What the network is called with."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    given: Mapping[int, torch.Tensor]  # what layers make, which is known already, by their number
    tensors: list[torch.Tensor]  # all of them, in their order

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any], given: Mapping[int, torch.Tensor]) -> _Call:
        found: list[torch.Tensor] = []
        mapped((args, kwargs, given), found.append)
        return cls(args, kwargs, given, found)

    @property
    def rows(self) -> int:
        return len(self.tensors[0])

    @property
    def kind(self) -> Hashable:
        """All that a trace depends on: everything but the tensors' values, and how many rows there are. None: it may
        depend on more, or there are no rows."""
        if not self.tensors or not self.tensors[0].dim():
            return None
        amount = "one" if self.rows == 1 else "few" if self.rows < MANY else "many"
        try:
            return amount, self._frozen((self.args, self.kwargs, self.given))
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
        """The same with other tensors."""
        return _Call.of(*mapped((self.args, self.kwargs, self.given), function))

    def with_rows(self, count: int) -> _Call:
        """The same with so many rows, of which there are some twice where it has not as many."""
        numbers = [number % self.rows for number in range(count)]
        return self.mapped(lambda tensor: tensor[numbers] if self._by_row(tensor) else tensor)


class _Traced:
    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self.traces: dict[Hashable, Trace | None] = {}  # by the kind of input; None: it is being made, or is of no use
        self._modules = [(module, _parts(module)) for module in network.modules()]
        self._places = [(table, name) for table, name, _ in tensors(network)]
        self._twin = _Twin(network)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = self._given() if enabled else None
        if given is None:
            return self._plain(*args, **kwargs)
        call = _Call.of(args, kwargs, given)
        kind = call.kind
        if kind is None:
            return self._plain(*args, **kwargs)
        if (trace := self.traces.get(kind)) is None:
            return self._as_it_is(kind, call)
        try:
            return _run(trace, call, self._weights())
        except Exception as error:
            made = self._plain(*args, **kwargs)  # which raises what is not the trace's fault
            log.warning("a trace of %s failed, and is not used again", self._name, exc_info=error)
            self.traces[kind] = None
            return made

    def _plain(self, *args: Any, **kwargs: Any) -> Any:
        return type(self._network).forward(self._network, *args, **kwargs)

    @property
    def _name(self) -> str:
        return type(self._network).__name__

    def _given(self) -> dict[int, torch.Tensor] | None:
        """What is known beforehand of its layers' outputs; None: something is changed about the network."""
        given = {}
        for number, (module, parts) in enumerate(self._modules):
            changed = module._forward_hooks or module._forward_pre_hooks or _parts(module) != parts
            forward = vars(module).get("forward") if number else None  # that of the network is this one
            if changed or not (forward is None or isinstance(forward, FixedOutput)):
                return None
            if forward is not None:
                given[number] = forward.value
        return given

    def _weights(self) -> list[torch.Tensor]:
        return [table[name] for table, name in self._places]

    def _as_it_is(self, kind: Hashable, call: _Call) -> Any:
        began = time.monotonic()
        made = self._plain(*call.args, **call.kwargs)
        quick = time.monotonic() - began < LONGEST
        if quick and kind not in self.traces and _count() < MOST and _at_work.acquire(blocking=False):
            try:
                background().submit(self._try, kind, call.mapped(torch.clone))
            except Exception:  # there is no room for the copies now
                _at_work.release()
                return made
            self.traces.setdefault(kind, None)
        return made

    @torch.inference_mode()
    def _try(self, kind: Hashable, call: _Call) -> None:
        began = time.monotonic()
        try:
            trace, weights = self._twin.trace(call, self._weights()), self._weights()
            for other in map(call.with_rows, _to_check(call.rows)):
                if not _same(_run(trace, other, weights), self._twin.run(other, weights)):
                    raise ValueError(f"of {call.rows} rows, it makes something else of {other.rows}")
            self.traces[kind] = trace
            log.info("%s is traced for one more kind of input, in %.2f s", self._name, time.monotonic() - began)
        except Exception as error:  # whatever a tracer raises: the network is there without it
            log.info("no trace of %s: %s", self._name, str(error).strip().partition("\n")[0])
        finally:
            _at_work.release()


class _Twin:
    """The same layers once more, for another thread: without what is changed about those in use for a moment."""

    def __init__(self, network: nn.Module) -> None:
        self._network = copy.deepcopy(network, {id(weight): weight for *_, weight in tensors(network)})
        self._modules = [*self._network.modules()]
        self._places = [(table, name) for table, name, _ in tensors(self._network)]

    def trace(self, call: _Call, weights: Sequence[torch.Tensor]) -> Trace:
        """What it does with a call, for calls with other tensors and weights."""

        def run(inputs: list[torch.Tensor]) -> Any:
            taken = iter(inputs)
            return self.run(call.mapped(lambda _: next(taken)), [*taken])

        inputs = ([*call.tensors, *weights],)
        graph, _ = torch._C._create_graph_by_tracing(run, inputs, lambda _: "", True, False, None, ["inputs"])
        return torch._C._create_function_from_graph("forward", graph)

    def run(self, call: _Call, weights: Sequence[torch.Tensor]) -> Any:
        """What the network makes with these weights."""
        for (table, name), weight in zip(self._places, weights, strict=True):
            table[name] = weight
        with contextlib.ExitStack() as changed:
            for number, value in call.given.items():
                layer = vars(self._modules[number])
                layer["forward"] = lambda *_, value=value: value
                changed.callback(layer.pop, "forward")
            return self._network(*call.args, **call.kwargs)


def _count() -> int:
    """Of all networks' traces."""
    found = [ref() for ref in alive.valuerefs()]  # at once, as models are loaded meanwhile
    return sum(len(each.traces) for each in found if each is not None)


def _run(trace: Trace, call: _Call, weights: Sequence[torch.Tensor]) -> Any:
    # Its optimiser takes long at first, and makes nothing faster on a CPU.
    with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        return trace([*call.tensors, *weights])


def _parts(module: nn.Module) -> list[Any]:
    """Those that others put into a network's modules at times."""
    return [*module._modules.values(), vars(module).get("processor")]  # diffusers' attention processors


def _to_check(rows: int) -> Sequence[int]:
    """For how many rows a trace of so many has to be right."""
    return (1,) if rows == 1 else (rows, 2, rows + 1) if rows < MANY else (rows, rows + 1)


def _same(made: Any, expected: Any) -> bool:
    both = [each if isinstance(each, tuple) else (each,) for each in (made, expected)]
    return all(itertools.starmap(torch.equal, zip(*both, strict=True)))
