"""diffusers' scheduler lms with its coefficients remembered: each is a numerical integral, which takes longer than the
rest of the step, and depends on the schedule alone."""

from __future__ import annotations

from typing import Any, TypeAlias

import diffusers

SCHEDULES = 32  # whose coefficients are remembered

Coefficients: TypeAlias = dict[tuple[int, int, int], float]

_known: dict[tuple[float, ...], Coefficients] = {}  # by the sigmas


class LMSDiscreteScheduler(diffusers.LMSDiscreteScheduler):
    """Steps as diffusers' class, to the last bit."""

    sigmas: Any

    def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
        """That of one of `order` derivatives, the `current_order`-th last, at step `t`."""
        known = _coefficients(tuple(self.sigmas.tolist()))
        key = order, t, current_order
        if key not in known:
            known[key] = super().get_lms_coefficient(*key)  # type: ignore[misc]  # untyped
        return known[key]


def _coefficients(sigmas: tuple[float, ...]) -> Coefficients:
    """May be called on several threads: one that loses a race computes again."""
    known = _known.setdefault(sigmas, {})
    if len(_known) > SCHEDULES:
        _known.clear()
    return known
