"""How long work takes, learnt from what has been measured. Nothing is known of what has not been measured.

The engine's thread writes; readers on other threads see it a moment late.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import TYPE_CHECKING, TypeVar

from darkroom_server.jobs.numbers import size_class

if TYPE_CHECKING:
    from darkroom_server.jobs.plan import Plan

PARTS = ("begin", "decode")  # of what an image takes beside its evaluations
KINDS = 1024  # that are remembered
WEIGHT = 0.2  # of a new measurement in a moving average
WARM_UP = 8  # measurements
OUTLIER = 2.0  # a measurement counts up to so many times the average: others are warm-ups and hiccups

T = TypeVar("T")


class Average:
    """A moving average of seconds, deaf to outliers. The first measurements are often of warm-ups: of those the least
    counts, and `value` is None before there are two."""

    __slots__ = ("_count", "_value")

    def __init__(self) -> None:
        self._count, self._value = 0, 0.0

    @property
    def value(self) -> float | None:
        return self._value if self._count > 1 else None

    def add(self, seconds: float) -> None:
        """A measurement."""
        self._count += 1
        if self._count == 1 or seconds < self._value / OUTLIER:
            self._value = seconds
        elif self._count <= WARM_UP:
            self._value = min(self._value, seconds)
        else:
            self._value += WEIGHT * (min(seconds, OUTLIER * self._value) - self._value)


class Curve:
    """Seconds by amount of work, from averages at amounts a factor of two apart."""

    __slots__ = ("_points",)

    def __init__(self) -> None:
        self._points: dict[int, tuple[Average, Average]] = {}  # amount and seconds, by the amount's binary digits

    def add(self, amount: int, seconds: float) -> None:
        """A measurement."""
        amounts, times = self._points.setdefault(amount.bit_length(), (Average(), Average()))
        amounts.add(amount)
        times.add(seconds)

    def at(self, amount: int) -> float | None:
        """The seconds of this amount: between two measured ones on a line; beyond, half of them are for any amount."""
        known = sorted((x.value, y.value) for x, y in list(self._points.values()) if x.value and y.value)
        below = next((point for point in reversed(known) if point[0] <= amount), None)
        above = next((point for point in known if point[0] > amount), None)
        if below and above:
            share = (amount - below[0]) / (above[0] - below[0])
            return below[1] + share * (above[1] - below[1])
        nearest = below or above
        return nearest[1] * (0.5 + 0.5 * amount / nearest[0]) if nearest else None


class Speeds:
    """Seconds of evaluations and of pictures: of jobs that share evaluations, else of their model and size."""

    def __init__(self) -> None:
        self._evaluations: OrderedDict[Hashable, Curve] = OrderedDict()
        self._pictures: OrderedDict[Hashable, Average] = OrderedDict()

    def evaluation_took(self, plan: Plan, rows: int, seconds: float) -> None:
        """An evaluation of this many rows of such jobs, with what belongs to it: scheduler steps and previews."""
        for key in (plan.batch_key, _general(plan)):
            _of(self._evaluations, key, Curve).add(rows * plan.pixels, seconds)

    def picture_took(self, part: str, plan: Plan, seconds: float) -> None:
        """What one image of such a job takes beside its evaluations, by parts: to begin it, and to decode it."""
        for key in (plan.batch_key, _general(plan)):
            _of(self._pictures, (part, key), Average).add(seconds / plan.pixels)

    def evaluation(self, plan: Plan, rows: int) -> float | None:
        """Seconds of an evaluation; None if nothing like it has been measured."""
        curve = self._evaluations.get(plan.batch_key) or self._evaluations.get(_general(plan))
        return curve.at(rows * plan.pixels) if curve is not None else None

    def picture(self, plan: Plan) -> float:
        """Seconds that an image takes beside its evaluations; 0 if nothing like it has been measured."""
        return sum(self._part(part, plan) for part in PARTS) * plan.pixels

    def _part(self, part: str, plan: Plan) -> float:
        average = self._pictures.get((part, plan.batch_key)) or self._pictures.get((part, _general(plan)))
        return average.value or 0.0 if average is not None else 0.0


def _general(plan: Plan) -> Hashable:
    return plan.request.model, size_class(plan.request.width, plan.request.height), plan.request.deterministic


def _of(known: OrderedDict[Hashable, T], key: Hashable, make: type[T]) -> T:
    """The entry of a key, made if there is none; the one that was used least recently goes if there are too many."""
    found = known.get(key)
    if found is None:
        found = known[key] = make()
    known.move_to_end(key)
    if len(known) > KINDS:
        known.popitem(last=False)
    return found
