"""Tables of what a diffusers scheduler does: the coefficients of its steps, read off the object itself.

A step of most schedulers is linear in its terms: the sample, the model's output, the tensors that the object keeps from
the steps before, and the noise that it draws. Fed with a unit vector for each term, one step of the object gives its
coefficients, and more columns of random numbers show that it is linear indeed. A table also notes what else changes in
the object, so that a sample's own scheduler follows without its `step`, and can take it again at any time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from darkroom_server.device.threads import single_threaded_pool
from darkroom_server.schedulers.scheduler import begin_at, clean_estimate, step_arguments

log = logging.getLogger(__name__)

COLUMNS = 64  # of a probe: unit vectors, then zeros, then random numbers
ZEROS = 8
SHAPE = (1, COLUMNS, 1, 1)
MAX_HISTORY = 8  # how many items of a list a step may need: IPNDM keeps all, and reads four
TOLERANCE = 1e-6  # between a step and its coefficients, relative to the sum of the absolute terms
DRAWS: tuple[tuple[torch.dtype | None, ...], ...] = ((), (None,), (torch.float32,), (None, None))

StateSlot: TypeAlias = tuple[str, int | None]  # where a scheduler keeps a tensor: an attribute, or an item of a list
Floats: TypeAlias = NDArray[np.float64]


class NotLinear(Exception):
    """A scheduler's step cannot be written as coefficients."""


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Stands for a tensor: one of a step's terms or, counted on behind them, of its results."""

    index: int


@dataclass(frozen=True, slots=True)
class Step:
    """One evaluation's step. Its terms are the sample, the model's output, the tensors kept, and the noise drawn; its
    results the next sample, what is to be kept and is not a term, and the estimate of the clean sample."""

    scale: float  # of the sample as the denoiser takes it
    slots: tuple[StateSlot, ...]  # of each tensor kept
    draws: tuple[torch.dtype | None, ...]  # of each noise; None: that of the model's output
    used: tuple[int, ...]  # the terms that count
    coefficients: Floats  # (results, used)
    changes: dict[str, Any]  # the object's attributes after the step, its tensors as TensorRef


@dataclass(frozen=True, slots=True)
class Table:
    """The steps from one evaluation on, as far as they are linear."""

    first: int = 0
    steps: tuple[Step, ...] = ()

    def at(self, evaluation: int) -> Step | None:
        """The step of this evaluation, which is not before the first."""
        index = evaluation - self.first
        return self.steps[index] if index < len(self.steps) else None


class Tables:
    """The tables of the schedulers in use, made on a thread of their own. For the event loop.

    `capacity` is how many evaluations they have in all, each about 1 KiB; the tables used longest ago are forgotten.
    """

    def __init__(self, capacity: int = 2**14) -> None:
        self._capacity = capacity
        self._held = 0  # evaluations
        self._tables: OrderedDict[Hashable, tuple[asyncio.Future[Table], int]] = OrderedDict()
        self._maker = single_threaded_pool("tables")

    async def of(self, scheduler: Any, first: int, eta: float) -> Table:
        """The table of a scheduler that has its timesteps and begins with the evaluation `first`, when it is complete;
        empty where steps are not linear. Making one takes some 0.5 ms an evaluation."""
        timesteps = scheduler.timesteps.tolist()
        key = (type(scheduler), repr(sorted(scheduler.config.items())), *timesteps, first, eta)
        if key not in self._tables:
            loop = asyncio.get_running_loop()
            made = loop.run_in_executor(self._maker, make_table, scheduler, first, eta)
            self._tables[key] = made, len(timesteps) - first
            self._held += len(timesteps) - first
        self._tables.move_to_end(key)
        while self._held > self._capacity and len(self._tables) > 1:
            self._held -= self._tables.popitem(last=False)[1][1]
        return await asyncio.shield(self._tables[key][0])  # others wait for it, too

    def close(self) -> None:
        """Make no more of them."""
        self._maker.shutdown(wait=False, cancel_futures=True)


def make_table(scheduler: Any, first: int, eta: float) -> Table:
    """The table of a scheduler, which is not changed. It ends before the first step that is not linear."""
    steps: list[Step] = []
    try:
        steps.extend(tabulate(scheduler, first, eta))
    except Exception as error:  # a scheduler from elsewhere may raise anything, too
        log.info("%s is stepped by itself: %r", type(scheduler).__name__, error)
    return Table(first, tuple(steps))


def tabulate(scheduler: Any, first: int, eta: float) -> Iterator[Step]:
    """The steps of a scheduler. Changes nothing in it.

    :raises NotLinear: the next one is not linear
    """
    scheduler = begin_at(scheduler, first)
    for evaluation in range(first, len(scheduler.timesteps)):
        with torch.no_grad():
            step = _probe(scheduler, evaluation, eta)
        yield step


def read(scheduler: Any, slot: StateSlot) -> Any:
    """What a scheduler keeps in this place."""
    name, index = slot
    value = getattr(scheduler, name)
    return value if index is None else value[index]


def fill(changes: Any, tensors: list[torch.Tensor]) -> Any:
    """The attributes that a step changes, with its tensors in their places."""
    if isinstance(changes, TensorRef):
        return tensors[changes.index]
    if isinstance(changes, list):
        return [fill(item, tensors) for item in changes]
    return changes


def _probe(scheduler: Any, evaluation: int, eta: float) -> Step:
    """Take one step of the object, and read it off.

    :raises NotLinear: it cannot be
    """
    slots, timestep = _slots(scheduler), scheduler.timesteps[evaluation]
    terms = _terms(2 + len(slots), seed=evaluation)
    for slot, term in zip(slots, terms[2:].clone(), strict=True):  # clones, for PNDM adds in place
        _put(scheduler, slot, term.view(SHAPE))
    kept = {id(read(scheduler, slot)): TensorRef(2 + i) for i, slot in enumerate(slots)}
    before = _attributes(scheduler, lambda tensor: kept[id(tensor)])
    sample, output = (term.view(SHAPE) for term in terms[:2])
    scaled = scheduler.scale_model_input(sample.clone(), timestep)
    generator = torch.Generator().manual_seed(evaluation)
    arguments = step_arguments(scheduler, generator, eta)
    result = scheduler.step(output.clone(), timestep, sample.clone(), **arguments)
    estimate = clean_estimate(scheduler, timestep, sample, result, output)

    draws, noise = _infer_noise_draws(generator, seed=evaluation)
    solve = partial(_solve, terms.numpy(), noise.numpy())
    results = _Results(solve(result.prev_sample))
    after = _attributes(scheduler, lambda tensor: results.ref_of(solve(tensor)))
    changes = {name: value for name, value in after.items() if not _same(before.get(name, ...), value)}
    if not _is_plain_state(list(changes.values())):
        raise NotLinear("it keeps what is not known")
    matrix = np.stack([*results.rows, solve(estimate)])
    used = np.flatnonzero(matrix.any(axis=0))
    return Step(
        scale=float(_solve(terms.numpy()[:1], noise.numpy()[:0], scaled)[0]),
        slots=slots,
        draws=draws,
        used=tuple(used.tolist()),
        coefficients=matrix[:, used],
        changes=changes,
    )


def _terms(count: int, seed: int) -> torch.Tensor:
    """What goes into a probe: (count, COLUMNS) float64. The random columns differ from step to step, so that what an
    object keeps elsewhere is seen as well."""
    generator, double = torch.Generator().manual_seed(seed), torch.float64
    random = 4 * torch.randn(count, COLUMNS - count - ZEROS, generator=generator, dtype=double)
    return torch.cat([torch.eye(count, dtype=double), torch.zeros(count, ZEROS, dtype=double), random], dim=1)


def _slots(scheduler: Any) -> tuple[StateSlot, ...]:
    """Where the object keeps tensors of the probe before."""
    found: list[StateSlot] = []
    for name, value in vars(scheduler).items():
        items = list(enumerate(value))[-MAX_HISTORY:] if isinstance(value, list) else [(None, value)]
        found += [(name, index) for index, item in items if _probed(item)]
    return tuple(found)


def _probed(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == SHAPE


def _put(scheduler: Any, slot: StateSlot, tensor: torch.Tensor) -> None:
    name, index = slot
    if index is None:
        setattr(scheduler, name, tensor)
    else:
        getattr(scheduler, name)[index] = tensor


def _attributes(scheduler: Any, place: Callable[[torch.Tensor], TensorRef]) -> dict[str, Any]:
    """The object's attributes, with the tensors of the probe as TensorRef; those beyond MAX_HISTORY are let go."""

    def note(value: Any) -> Any:
        if isinstance(value, list):
            gone = len(value) - MAX_HISTORY
            return [None if _probed(item) and index < gone else note(item) for index, item in enumerate(value)]
        return place(value) if _probed(value) else value

    return {name: note(value) for name, value in vars(scheduler).items()}


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, list) and isinstance(after, list):
        return len(before) == len(after) and all(map(_same, before, after))
    return before is after or (isinstance(after, bool | int | float | str | TensorRef) and before == after)


def _is_plain_state(value: Any) -> bool:
    """Whether this is all that a step left behind: a container of another kind, or a tensor, may hide a term."""
    if isinstance(value, list):
        return all(map(_is_plain_state, value))
    number = isinstance(value, torch.Tensor) and value.ndim == 0
    return value is None or number or isinstance(value, bool | int | float | str | np.generic | TensorRef)


def _infer_noise_draws(after: torch.Generator, seed: int) -> tuple[tuple[torch.dtype | None, ...], torch.Tensor]:
    """The noise that brings a generator of this seed to this state: dtypes, and (draws, COLUMNS) float64.

    :raises NotLinear: something else was drawn
    """
    for draws in DRAWS:
        generator = torch.Generator().manual_seed(seed)
        noise = [torch.randn(SHAPE, generator=generator, dtype=dtype or torch.float64) for dtype in draws]
        if generator.get_state().equal(after.get_state()):
            return draws, torch.stack([each.double().flatten() for each in noise]) if noise else torch.zeros(0, COLUMNS)
    raise NotLinear("its random draws are not known")


def _solve(terms: Floats, noise: Floats, result: torch.Tensor) -> Floats:
    """The coefficients of the terms and the noise, each (n, COLUMNS), in a result.

    :raises NotLinear: there are none
    """
    values, count = result.double().flatten().numpy(), len(terms)
    if not np.isfinite(values).all():
        raise NotLinear("its step divides by zero")
    zeros = slice(count, count + ZEROS)
    of_noise = np.linalg.lstsq(noise[:, zeros].T, values[zeros], rcond=None)[0] if len(noise) else noise[:, 0]
    of_terms = values[:count] - of_noise @ noise[:, :count]
    of_terms[abs(of_terms) < 1e-7 * abs(of_noise).max(initial=0.0)] = 0.0  # noise of float32 leaves that much
    coefficients, columns = np.concatenate([of_terms, of_noise]), np.concatenate([terms, noise])
    error = abs(values - coefficients @ columns)
    if not (error <= TOLERANCE * (abs(coefficients) @ abs(columns))).all():
        raise NotLinear("its step is not linear")
    return coefficients


class _Results:
    """The rows of coefficients of a step, each once; those of what is a term already are left out."""

    def __init__(self, following: Floats) -> None:
        self.rows = [following]

    def ref_of(self, row: Floats) -> TensorRef:
        """Where the tensor of these coefficients is found."""
        known = np.stack([*np.eye(len(row)), *self.rows])
        equal = (abs(known - row) <= 1e-9 * abs(row).max()).all(axis=1)
        if equal.any():
            return TensorRef(int(equal.argmax()))
        self.rows.append(row)
        return TensorRef(len(known))
