"""Runs what may fail by a plugin's or a model's fault, or for want of memory, so that one failure costs no more than it
must.

Everything run here changes nothing until it succeeded, so the others of a batch that fails go on from where they are.
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
from darkroom_server.errors import TOO_LITTLE_MEMORY, DeviceLost, OutOfMemory, classify, forget_cause, to_domain_error

log = logging.getLogger(__name__)

PATIENCE = 64  # runs at a limit before twice as much is tried

S = TypeVar("S")
T = TypeVar("T")
Outcome: TypeAlias = T | DarkroomError


@dataclass(slots=True)
class RowLimit:
    """How many rows of one kind of work to run at once."""

    rows: int
    good: int  # the most that fitted
    patience: int
    passed: int = 0  # runs about as large as it allows, since it was set


class RowLimits:
    """How much of each kind of work fits at once, learnt: nothing is known of it before it failed.

    What else takes memory comes and goes, so after `PATIENCE` runs twice as much is tried again. Each time that fails,
    patience doubles: failed attempts grow rarer, and cost nothing in the end.
    """

    def __init__(self) -> None:
        self._limits: dict[Hashable, RowLimit] = {}

    def __len__(self) -> int:
        """Of how many kinds of work a limit is known."""
        return len(self._limits)

    def of(self, work: Hashable, most: int) -> int:
        """How many rows to run at once, up to `most`; 0 where none is worth an attempt."""
        limit = self._limits.get(work)
        return most if limit is None else min(most, limit.rows)

    def below(self, work: Hashable, rows: int) -> int:
        """How many rows to try when so many did not fit: half, or more where more are known to."""
        limit = self._limits.get(work)
        return max(rows // 2, limit.good) if limit is not None and limit.good < rows else rows // 2

    def lower(self, work: Hashable, rows: int) -> None:
        """So many rows fit, and more do not."""
        log.info("%s: %s at once fit into memory", work, rows)
        before = self._limits.get(work)
        self._limits[work] = RowLimit(rows, rows, 2 * before.patience if before else PATIENCE)

    def exclude(self, work: Hashable) -> None:
        """Not even one fits, and there is a way without."""
        if self.of(work, 1):
            self.lower(work, 0)

    def passed(self, work: Hashable, rows: int) -> None:
        """So many rows fitted; or the way without was taken."""
        limit = self._limits.get(work)
        if limit is None or 2 * rows < limit.rows:  # a small batch says nothing of the limit
            return
        limit.passed, limit.good = limit.passed + 1, max(limit.good, rows)
        if limit.passed == limit.patience:
            limit.rows, limit.passed = max(1, 2 * limit.rows), 0

    def forget(self) -> None:
        """Memory was freed: what was learnt no longer holds."""
        self._limits.clear()


class Recovery:
    """Runs work on the engine's thread. `relieve` is called when something does not fit even alone: it frees what it
    can, and says whether that was enough to learn all limits anew."""

    def __init__(self, relieve: Callable[[], bool]) -> None:
        self.limits = RowLimits()
        self._relieve = relieve

    def once(self, run: Callable[[], T]) -> T:
        """The result of `run`, which is tried a second time where memory was short."""
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
        """For each item what `run` makes of it, or the error that it fails with alone. `run` gets as many items at once
        as the limit of this work allows, and up to `most`; fewer where so many fail. Of a batch that failed otherwise
        the items that cannot be the cause go on together.

        :raises DeviceLost: nothing works any more
        """
        outcomes: list[Outcome[T]] = []
        limit = size = self.limits.of(work, most)
        if not limit:
            self.limits.passed(work, 0)
            return [OutOfMemory(TOO_LITTLE_MEMORY) for _ in items]
        while part := items[len(outcomes) : len(outcomes) + size]:
            outcome: Outcome[list[T]] = _attempt(run, part)
            if isinstance(outcome, OutOfMemory) and len(part) > 1:
                clear_device_cache()
                size = self.limits.below(work, len(part))
                continue
            if isinstance(outcome, OutOfMemory) and relieve:
                relieve = self._make_room()  # where nothing was left to free, nothing will be
                if relieve:
                    limit = size = most
                outcome = _attempt(run, part)
            if isinstance(outcome, OutOfMemory):  # larger parts may have failed by this one's fault
                size = limit
            settled = self._settled(work, run, part, outcome, relieve, suspected)
            outcomes += settled
        self._learn(work, limit, size, outcomes)
        return outcomes

    def _settled(
        self,
        work: Hashable,
        run: Callable[[Sequence[S]], list[T]],
        part: Sequence[S],
        outcome: Outcome[list[T]],
        relieve: bool,
        suspected: Callable[[DarkroomError, S], bool],
    ) -> list[Outcome[T]]:
        """A part's outcomes. One that failed by somebody's fault is run again in halves, until that one is alone."""
        if not isinstance(outcome, DarkroomError):
            return [*outcome]
        if isinstance(outcome, DeviceLost):
            raise outcome
        if len(part) == 1:
            return [outcome]
        guilty = [suspected(outcome, item) for item in part]
        if all(guilty) or not any(guilty):
            middle = len(part) // 2
            guilty = [number < middle for number in range(len(part))]
        found: dict[bool, Iterator[Outcome[T]]] = {}
        for kind in (True, False):
            some = [item for item, its in zip(part, guilty, strict=True) if its is kind]
            made = self.each(work, run, some, relieve=relieve, suspected=suspected)
            found[kind] = iter(made)
        return [next(found[its]) for its in guilty]

    def _learn(self, work: Hashable, limit: int, size: int, outcomes: Sequence[object]) -> None:
        if any(isinstance(outcome, OutOfMemory) for outcome in outcomes):
            return  # by the fault of one, or for want of any memory: neither tells what fits
        if size < limit:
            self.limits.lower(work, size)
        elif outcomes:
            self.limits.passed(work, min(size, len(outcomes)))

    def _make_room(self) -> bool:
        freed = self._relieve()
        clear_device_cache(garbage_collection=True)
        if freed:
            self.limits.forget()
        return freed


def _attempt(run: Callable[[Sequence[S]], list[T]], items: Sequence[S]) -> Outcome[list[T]]:
    """The error is returned: the caller goes on when its traceback, which keeps the batch's tensors, is gone."""
    try:
        results = run(items)
        if len(results) != len(items):
            raise ValueError(f"{len(results)} results of {len(items)}")
        return results
    except BaseException as error:  # SystemExit in a plugin, too
        return to_domain_error(error) if len(items) == 1 else forget_cause(classify(error))


def work(kind: str, request: Request) -> Hashable:
    """What decides how many rows of this kind of work fit into memory."""
    return (kind, request.model, request.width, request.height)
