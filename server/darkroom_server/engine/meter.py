"""Measures turns: who is charged for them, and how long such work takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from darkroom_server.engine.batcher import parts
from darkroom_server.jobs.numbers import EngineNumbers, size_class
from darkroom_server.jobs.shares import Cost
from darkroom_server.jobs.speeds import Speeds

if TYPE_CHECKING:
    import torch

    from darkroom_server.engine.slot import Slot
    from darkroom_server.jobs.plan import Plan


class _Turn(NamedTuple):
    """What a turn's seconds are spent on."""

    shares: dict[str, Cost]  # of each client: of the rows, and the same over its jobs' weights
    plan: Plan
    rows: int


class Meter:
    """Times turns, of which one may lie within another. For the engine's thread."""

    def __init__(self, numbers: EngineNumbers, charge: Callable[[Hashable, Mapping[str, Cost]], None]) -> None:
        """`charge` gets the batch key of a turn, and what it has cost each client."""
        self.speeds = Speeds()
        self._numbers, self._charge = numbers, charge
        self._measured = 0.0  # seconds of all turns that have ended
        self._beside = 0.0  # seconds of the turn that were no evaluation
        self._stepped = 0  # rows that were evaluated in the turn
        self._launched: dict[torch.device, _Turn] = {}  # the last turn

    @contextmanager
    def turn(self, batch: Sequence[Slot]) -> Iterator[None]:
        """Context manager around the turn of a batch."""
        plan = batch[0].plan
        turn = _Turn(parts(batch), plan, 0)
        began, inner, outer = time.monotonic(), self._measured, (self._beside, self._stepped)
        self._beside, self._stepped = 0.0, 0
        try:
            yield
        finally:
            seconds = time.monotonic() - began - (self._measured - inner)
            self._measured += seconds
            turn = turn._replace(rows=self._stepped)
            device = plan.model.family.device
            if device.type == "cuda":  # it has waited for the evaluation before
                turn, self._launched[device] = self._launched.get(device, turn), turn
            self._record(turn, seconds, seconds - self._beside)
            self._beside, self._stepped = outer

    def _record(self, turn: _Turn, seconds: float, evaluating: float) -> None:
        costs = {client: (part * seconds, weighed * seconds) for client, (part, weighed) in turn.shares.items()}
        self._charge(turn.plan.batch_key, costs)
        if turn.rows:
            self.speeds.evaluation_took(turn.plan, turn.rows, max(0.0, evaluating))

    @contextmanager
    def beside(self, part: str, slots: Sequence[Slot]) -> Iterator[None]:
        """Context manager around a part of the turn that is no evaluation: ``"begin"`` or ``"decode"`` these slots."""
        began, inner = time.monotonic(), self._measured
        with self._numbers.part(part):
            yield
        seconds = time.monotonic() - began - (self._measured - inner)
        self._beside += seconds
        if slots:
            self.speeds.picture_took(part, slots[0].plan, seconds / len(slots))

    def stepped(self, slots: Sequence[Slot], seconds: float) -> None:
        """These slots were evaluated, and stepped."""
        request = slots[0].plan.request
        self._stepped = sum(slot.rows for slot in slots)
        self._numbers.rows.add(self._stepped)
        kind = request.model, size_class(request.width, request.height)
        self._numbers.steps[kind].add(seconds)
        self._numbers.stepped_rows[kind] += self._stepped
