"""Runs batched work with failure isolation: on OOM retries with smaller batches, on other errors bisects to the failing
item.

Work run here has no side effects before it succeeds, so it can be retried.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from accelerate.utils.memory import clear_device_cache

from darkroom_plugins.errors import DarkroomError
from darkroom_plugins.request import Request
from darkroom_server.errors import (
    TOO_LITTLE_MEMORY,
    Cancelled,
    DeviceLost,
    OutOfMemory,
    classify,
    forget_cause,
    to_domain_error,
)

log = logging.getLogger(__name__)

PATIENCE = 64  # successful batches at a limit before it is doubled

S = TypeVar("S")
T = TypeVar("T")
Outcome: TypeAlias = T | DarkroomError


@dataclass(slots=True)
class RowLimit:
    """The row limit of one kind of work."""

    rows: int
    max_fitted: int  # the largest successful batch
    patience: int  # successes before the limit is doubled
    successes: int = 0  # since the limit was set, of batches near it


class RowLimits:
    """Row limits by kind of work, learnt from OOM failures.

    Free memory varies, so after `PATIENCE` successful batches a limit is doubled again. Each failure doubles the
    patience (exponential backoff): the cost of failed attempts vanishes.
    """

    def __init__(self) -> None:
        self._limits: dict[Hashable, RowLimit] = {}

    def __len__(self) -> int:
        """Of how many kinds of work a limit is known."""
        return len(self._limits)

    def of(self, work: Hashable, most: int) -> int:
        """The number of rows to run at once, up to `most`; 0 while this work is excluded."""
        limit = self._limits.get(work)
        return most if limit is None else min(most, limit.rows)

    def below(self, work: Hashable, rows: int) -> int:
        """The next batch size after OOM with `rows`: half, or the largest known to fit."""
        limit = self._limits.get(work)
        return max(rows // 2, limit.max_fitted) if limit is not None and limit.max_fitted < rows else rows // 2

    def lower(self, work: Hashable, rows: int) -> None:
        """Set the limit: so many rows fit, more do not."""
        log.info("%s: %s at once fit into memory", work, rows)
        before = self._limits.get(work)
        self._limits[work] = RowLimit(rows, rows, 2 * before.patience if before else PATIENCE)

    def exclude(self, work: Hashable) -> None:
        """Skip this work for a while: not even one row fits, and the caller has a fallback."""
        if self.of(work, 1):
            self.lower(work, 0)

    def record_success(self, work: Hashable, rows: int) -> None:
        """A batch of so many rows fitted; 0: the fallback was used."""
        limit = self._limits.get(work)
        if limit is None or 2 * rows < limit.rows:  # a small batch tells nothing about the limit
            return
        limit.successes, limit.max_fitted = limit.successes + 1, max(limit.max_fitted, rows)
        if limit.successes == limit.patience:
            limit.rows, limit.successes = max(1, 2 * limit.rows), 0

    def forget(self) -> None:
        """Reset all limits, after memory was freed."""
        self._limits.clear()


@dataclass(slots=True)
class _Relief:
    """Whether memory may be freed for a batch and its parts."""

    available: bool


class Recovery:
    """Runs work on the engine's thread. `relieve` is called on OOM of a single item: it frees memory, and returns
    whether to reset the row limits."""

    def __init__(self, relieve: Callable[[], bool]) -> None:
        self.limits = RowLimits()
        self._relieve = relieve

    def once(self, run: Callable[[], T]) -> T:
        """The result of `run`; on OOM it is retried once, after memory was freed."""
        try:
            return run()
        except BaseException as error:
            if not isinstance(classify(error), OutOfMemory):
                raise
        self._make_room()  # outside the except block, whose traceback keeps tensors in memory
        return run()

    def each(
        self,
        work: Hashable,
        run: Callable[[Sequence[S]], list[T]],
        items: Sequence[S],
        most: int = sys.maxsize,
        relieve: bool = True,
        suspected: Callable[[DarkroomError, S], bool] = lambda error, item: True,
    ) -> list[Outcome[T]]:
        """For each item its result of `run`, or the error that it raises alone. The batch size is the row limit of this
        work, at most `most`; after OOM it shrinks. After another failure the items that are not `suspected` of it go on
        together.

        :raises DeviceLost: the device is unusable
        """
        return self._each(work, run, items, most, _Relief(relieve), suspected)

    def _each(
        self,
        work: Hashable,
        run: Callable[[Sequence[S]], list[T]],
        items: Sequence[S],
        most: int,
        relief: _Relief,
        suspected: Callable[[DarkroomError, S], bool],
    ) -> list[Outcome[T]]:
        outcomes: list[Outcome[T]] = []
        limit = size = self.limits.of(work, most)
        if not limit:
            self.limits.record_success(work, 0)
            return [OutOfMemory(TOO_LITTLE_MEMORY) for _ in items]
        while part := items[len(outcomes) : len(outcomes) + size]:
            outcome: Outcome[list[T]] = _attempt(run, part)
            if isinstance(outcome, OutOfMemory) and len(part) > 1:
                clear_device_cache()
                size = self.limits.below(work, len(part))
                continue
            if isinstance(outcome, OutOfMemory) and relief.available:
                relief.available = self._make_room()  # once nothing could be freed, it is not tried again
                if relief.available:
                    limit = size = most
                outcome = _attempt(run, part)
            if isinstance(outcome, OutOfMemory):  # this item may have been why larger batches failed
                size = limit
            part_outcomes = self._isolate(work, run, part, outcome, relief, suspected)
            outcomes += part_outcomes
        self._update_limits(work, limit, size, outcomes)
        return outcomes

    def _isolate(
        self,
        work: Hashable,
        run: Callable[[Sequence[S]], list[T]],
        part: Sequence[S],
        outcome: Outcome[list[T]],
        relief: _Relief,
        suspected: Callable[[DarkroomError, S], bool],
    ) -> list[Outcome[T]]:
        """A part's outcomes. Bisects a failing part until the failing item is isolated."""
        if not isinstance(outcome, DarkroomError):
            return [*outcome]
        if isinstance(outcome, DeviceLost):
            raise outcome
        if len(part) == 1 or isinstance(outcome, Cancelled):
            return [outcome for _ in part]
        guilty = [suspected(outcome, item) for item in part]
        if all(guilty) or not any(guilty):
            middle = len(part) // 2
            guilty = [number < middle for number in range(len(part))]
        found: dict[bool, Iterator[Outcome[T]]] = {}
        for kind in (True, False):
            some = [item for item, its in zip(part, guilty, strict=True) if its is kind]
            made = self._each(work, run, some, sys.maxsize, relief, suspected)
            found[kind] = iter(made)
        return [next(found[its]) for its in guilty]

    def _update_limits(self, work: Hashable, limit: int, size: int, outcomes: Sequence[object]) -> None:
        if any(isinstance(outcome, OutOfMemory | Cancelled) for outcome in outcomes):
            return  # a single item failed, or none was finished, which tells nothing about row limits
        if size < limit:
            self.limits.lower(work, size)
        elif outcomes:
            self.limits.record_success(work, min(size, len(outcomes)))

    def _make_room(self) -> bool:
        freed = self._relieve()
        clear_device_cache(garbage_collection=True)
        if freed:
            self.limits.forget()
        return freed


def _attempt(run: Callable[[Sequence[S]], list[T]], items: Sequence[S]) -> Outcome[list[T]]:
    """Returns the error, without its traceback, which would keep the batch's tensors alive."""
    try:
        results = run(items)
        if len(results) != len(items):
            raise ValueError(f"{len(results)} results of {len(items)}")
        return results
    except BaseException as error:  # plugins may raise SystemExit, too
        return to_domain_error(error) if len(items) == 1 else forget_cause(classify(error))


def work(kind: str, request: Request) -> Hashable:
    """The key of a row limit: work of equal memory per row."""
    return (kind, request.model, request.width, request.height)
