"""Tables of the linear coefficients of diffusers' scheduler steps, obtained by probing the scheduler object.

A step of most schedulers is linear in its terms: the latents, the model's output, the object's history tensors, and the
noise drawn. One step on unit vectors, one a term, yields the coefficients; further columns of random numbers verify
linearity. A table also records the object's other state changes: a sample's scheduler object is updated without calling
`step`, and can take any later step itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from darkroom_server.device.threads import single_threaded_pool
from darkroom_server.schedulers.scheduler import begin_at, clean_estimate, step_arguments

log = logging.getLogger(__name__)

COLUMNS = 64  # of a probe: unit vectors, zeros, random numbers
ZEROS = 8
SHAPE = (1, COLUMNS, 1, 1)
MAX_HISTORY = 8  # items of a list that a step may read: IPNDM keeps all, and reads four
TOLERANCE = 1e-6  # of a step's linearity, relative to the sum of the absolute terms
DRAWS: tuple[tuple[torch.dtype | None, ...], ...] = ((), (None,), (torch.float32,), (None, None))

StateSlot: TypeAlias = tuple[str, int | None]  # a tensor in a scheduler's state: an attribute, or an item of a list
Floats: TypeAlias = NDArray[np.float64]


class NotLinear(Exception):
    """A scheduler's step is not linear in its terms."""


class NotFinite(NotLinear):
    """A scheduler's step divides by zero."""


OFF_SCHEDULE = (IndexError, AssertionError)  # of diffusers' schedulers that step beyond the end of what they keep


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Placeholder for a tensor: an index into a step's terms, followed by its results."""

    index: int


@dataclass(frozen=True, slots=True)
class Step:
    """One evaluation's step. Terms: the latents, the model's output, the history tensors, the noise drawn. Results: the
    next latents, new history tensors that are not terms, the estimate of the clean latents."""

    scale: float  # of the latents as the denoiser's input
    slots: tuple[StateSlot, ...]  # of the history tensors
    draws: tuple[torch.dtype | None, ...]  # dtype of each noise tensor; None: the model output's
    used: tuple[int, ...]  # indices of terms with nonzero coefficients
    coefficients: Floats  # (results, used)
    changes: dict[str, Any]  # attributes that the step changes, tensors as TensorRef


@dataclass(frozen=True, slots=True)
class Table:
    """The steps from evaluation `first` up to the first that is not linear."""

    first: int = 0
    steps: tuple[Step, ...] = ()
    fault: Literal["divides by zero", "fails"] | None = None  # of the object's step after the last one

    def at(self, evaluation: int) -> Step | None:
        """The step of this evaluation, at least `first`; None beyond the table."""
        index = evaluation - self.first
        return self.steps[index] if index < len(self.steps) else None


class Tables:
    """LRU cache of tables, built on a thread of its own. For the event loop.

    `capacity` is the total number of evaluations, of about 1 KiB each.
    """

    def __init__(self, capacity: int = 2**14) -> None:
        self._capacity = capacity
        self._evaluations = 0  # in all tables
        self._tables: OrderedDict[Hashable, tuple[asyncio.Future[Table], int]] = OrderedDict()
        self._maker = single_threaded_pool("tables")

    async def of(self, scheduler: Any, first: int, eta: float) -> Table:
        """The complete table of a scheduler with timesteps, from evaluation `first` on; empty if the first step is not
        linear. Building one takes about 0.5 ms an evaluation."""
        timesteps = scheduler.timesteps.tolist()
        key = (type(scheduler), repr(sorted(scheduler.config.items())), *timesteps, first, eta)
        if key not in self._tables:
            loop = asyncio.get_running_loop()
            made = loop.run_in_executor(self._maker, make_table, scheduler, first, eta)
            self._tables[key] = made, len(timesteps) - first
            self._evaluations += len(timesteps) - first
        self._tables.move_to_end(key)
        while self._evaluations > self._capacity and len(self._tables) > 1:
            self._evaluations -= self._tables.popitem(last=False)[1][1]
        return await asyncio.shield(self._tables[key][0])  # other jobs await it, too

    def close(self) -> None:
        """Stop building tables."""
        self._maker.shutdown(wait=False, cancel_futures=True)


def make_table(scheduler: Any, first: int, eta: float) -> Table:
    """The table of a scheduler, up to the first step that is not linear. Does not change the scheduler."""
    steps: list[Step] = []
    fault: Literal["divides by zero", "fails"] | None = None
    try:
        steps.extend(tabulate(scheduler, first, eta))
    except NotFinite:
        fault = "divides by zero"
    except OFF_SCHEDULE:
        fault = "fails"
    except Exception as error:  # schedulers of plugins may raise anything
        log.info("%s is stepped by its object, without a table: %r", type(scheduler).__name__, error)
    return Table(first, tuple(steps), fault)


def tabulate(scheduler: Any, first: int, eta: float) -> Iterator[Step]:
    """The steps of a scheduler. Does not change it.

    :raises NotFinite: the next step divides by zero
    :raises NotLinear: the next step is not linear
    """
    scheduler = begin_at(scheduler, first)
    for evaluation in range(first, len(scheduler.timesteps)):
        with torch.no_grad():
            step = _probe(scheduler, evaluation, eta)
        yield step


def read(scheduler: Any, slot: StateSlot) -> Any:
    """The value of a state slot."""
    name, index = slot
    value = getattr(scheduler, name)
    return value if index is None else value[index]


def fill(changes: Any, tensors: list[torch.Tensor]) -> Any:
    """A step's state changes, with TensorRef replaced by tensors."""
    if isinstance(changes, TensorRef):
        return tensors[changes.index]
    if isinstance(changes, list):
        return [fill(item, tensors) for item in changes]
    return changes


def _probe(scheduler: Any, evaluation: int, eta: float) -> Step:
    """Take one step of the object on probe tensors, and solve for its coefficients.

    :raises NotLinear: the step is not linear
    """
    slots, timestep = _history_slots(scheduler), scheduler.timesteps[evaluation]
    terms = _probe_terms(2 + len(slots), seed=evaluation)
    for slot, term in zip(slots, terms[2:].clone(), strict=True):  # clones, as PNDM adds in place
        _write(scheduler, slot, term.view(SHAPE))
    kept = {id(read(scheduler, slot)): TensorRef(2 + i) for i, slot in enumerate(slots)}
    before = _state(scheduler, lambda tensor: kept[id(tensor)])
    latents, output = (term.view(SHAPE) for term in terms[:2])
    scaled = scheduler.scale_model_input(latents.clone(), timestep)
    generator = torch.Generator().manual_seed(evaluation)
    arguments = step_arguments(scheduler, generator, eta)
    result = scheduler.step(output.clone(), timestep, latents.clone(), **arguments)
    estimate = clean_estimate(scheduler, timestep, latents, result, output)

    draws, noise = _infer_noise_draws(generator, seed=evaluation)
    solve = partial(_solve, terms.numpy(), noise.numpy())
    results = _CoefficientRows(solve(result.prev_sample))
    after = _state(scheduler, lambda tensor: results.ref_of(solve(tensor)))
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


def _probe_terms(count: int, seed: int) -> torch.Tensor:
    """The terms of a probe: (count, COLUMNS) float64. The random columns differ between steps, which exposes state that
    is kept elsewhere."""
    generator, double = torch.Generator().manual_seed(seed), torch.float64
    random = 4 * torch.randn(count, COLUMNS - count - ZEROS, generator=generator, dtype=double)
    return torch.cat([torch.eye(count, dtype=double), torch.zeros(count, ZEROS, dtype=double), random], dim=1)


def _history_slots(scheduler: Any) -> tuple[StateSlot, ...]:
    """The state slots that hold tensors of the previous probe."""
    found: list[StateSlot] = []
    for name, value in vars(scheduler).items():
        items = list(enumerate(value))[-MAX_HISTORY:] if isinstance(value, list) else [(None, value)]
        found += [(name, index) for index, item in items if _probed(item)]
    return tuple(found)


def _probed(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == SHAPE


def _write(scheduler: Any, slot: StateSlot, tensor: torch.Tensor) -> None:
    name, index = slot
    if index is None:
        setattr(scheduler, name, tensor)
    else:
        getattr(scheduler, name)[index] = tensor


def _state(scheduler: Any, ref_of: Callable[[torch.Tensor], TensorRef]) -> dict[str, Any]:
    """The object's attributes, with probe tensors as TensorRef; list items older than MAX_HISTORY become None."""

    def convert(value: Any) -> Any:
        if isinstance(value, list):
            expired = len(value) - MAX_HISTORY
            return [None if _probed(item) and index < expired else convert(item) for index, item in enumerate(value)]
        return ref_of(value) if _probed(value) else value

    return {name: convert(value) for name, value in vars(scheduler).items()}


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, list) and isinstance(after, list):
        return len(before) == len(after) and all(map(_same, before, after))
    return before is after or (isinstance(after, bool | int | float | str | TensorRef) and before == after)


def _is_plain_state(value: Any) -> bool:
    """Whether a changed attribute is fully known; tensors and other containers may hide a term."""
    if isinstance(value, list):
        return all(map(_is_plain_state, value))
    number = isinstance(value, torch.Tensor) and value.ndim == 0
    return value is None or number or isinstance(value, bool | int | float | str | np.generic | TensorRef)


def _infer_noise_draws(after: torch.Generator, seed: int) -> tuple[tuple[torch.dtype | None, ...], torch.Tensor]:
    """The noise drawn between the seed and this generator state: dtypes, and (draws, COLUMNS) float64.

    :raises NotLinear: the draws are not among DRAWS
    """
    for draws in DRAWS:
        generator = torch.Generator().manual_seed(seed)
        noise = [torch.randn(SHAPE, generator=generator, dtype=dtype or torch.float64) for dtype in draws]
        if generator.get_state().equal(after.get_state()):
            return draws, torch.stack([each.double().flatten() for each in noise]) if noise else torch.zeros(0, COLUMNS)
    raise NotLinear("its random draws are not known")


def _solve(terms: Floats, noise: Floats, result: torch.Tensor) -> Floats:
    """The coefficients, (terms + noise,), of a result in terms and noise, each (n, COLUMNS).

    :raises NotLinear: the result is not a linear combination
    """
    values, count = result.double().flatten().numpy(), len(terms)
    if not np.isfinite(values).all():
        raise NotFinite("its step divides by zero")
    zeros = slice(count, count + ZEROS)
    of_noise = np.linalg.lstsq(noise[:, zeros].T, values[zeros], rcond=None)[0] if len(noise) else noise[:, 0]
    of_terms = values[:count] - of_noise @ noise[:, :count]
    of_terms[abs(of_terms) < 1e-7 * abs(of_noise).max(initial=0.0)] = 0.0  # rounding error of float32 noise
    coefficients, columns = np.concatenate([of_terms, of_noise]), np.concatenate([terms, noise])
    error = abs(values - coefficients @ columns)
    if not (error <= TOLERANCE * (abs(coefficients) @ abs(columns))).all():
        raise NotLinear("its step is not linear")
    return coefficients


class _CoefficientRows:
    """The distinct rows of a step's coefficient matrix, without those that equal a term."""

    def __init__(self, next_latents: Floats) -> None:
        self.rows = [next_latents]

    def ref_of(self, row: Floats) -> TensorRef:
        """The reference to the tensor with these coefficients: a term, or a row, added if new."""
        known = np.stack([*np.eye(len(row)), *self.rows])
        equal = (abs(known - row) <= 1e-9 * abs(row).max()).all(axis=1)
        if equal.any():
            return TensorRef(int(equal.argmax()))
        self.rows.append(row)
        return TensorRef(len(known))
