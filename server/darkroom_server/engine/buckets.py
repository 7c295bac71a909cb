"""Row buckets: batches in which a row's bytes depend neither on its company nor on its place.

The last bits of a row's output depend on the number of rows, as kernels are chosen by shape. Deterministic rows are
therefore evaluated in the numbers of rows that give the bytes of the smallest one, the bucket. Which do is not assumed:
the first time that a number comes up, its rows are evaluated in buckets, too, and compared.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import torch

log = logging.getLogger(__name__)

LONG_SECONDS = 0.25  # per bucket: above, larger batches gain nothing, and comparing them would take minutes
KINDS = 256  # whose row counts are remembered

S = TypeVar("S")
Evaluate: TypeAlias = Callable[[Sequence[S]], Sequence[torch.Tensor]]


@dataclass(slots=True)
class _Kind:
    """What is known of evaluations of one kind."""

    proven: set[int] = field(default_factory=set)  # numbers of rows that give the bucket's bytes
    most: int = sys.maxsize  # rows to try
    alone: bool = False  # not even in a bucket do rows keep their bytes beside others


class Buckets:
    """Evaluates rows in buckets."""

    def __init__(self) -> None:
        self._kinds: OrderedDict[Hashable, _Kind] = OrderedDict()

    def run(self, kind: Hashable, evaluate: Evaluate[S], rows: Sequence[S], bucket: int) -> list[torch.Tensor]:
        """The output of each row, of equal bytes whatever rows come with it. `evaluate` gets at least `bucket` rows,
        some of them repeated, and has no side effects that depend on their company. `kind`: all that is equal for such
        rows and may change kernels."""
        known = self._known(kind)
        if not known.alone and bucket not in known.proven:
            self._prove_bucket(kind, known, evaluate, rows, bucket)
        if known.alone:
            return [evaluate([row] * bucket)[0] for row in rows]
        outputs: list[torch.Tensor] = []
        while left := len(rows) - len(outputs):
            parts = -(-left // known.most)  # as equal as can be: few rows cost as much as a few more
            part = rows[len(outputs) : len(outputs) + -(-left // parts)]
            outputs += self._part(kind, known, evaluate, part, bucket)
        return outputs

    def _known(self, kind: Hashable) -> _Kind:
        known = self._kinds.setdefault(kind, _Kind())
        self._kinds.move_to_end(kind)
        if len(self._kinds) > KINDS:
            self._kinds.popitem(last=False)
        return known

    def _prove_bucket(
        self, kind: Hashable, known: _Kind, evaluate: Evaluate[S], rows: Sequence[S], bucket: int
    ) -> None:
        """Compare each of the first rows, alone in a bucket, with itself at other places and beside others."""
        first, began = filled(rows[:bucket], bucket), time.monotonic()
        alone = [evaluate([row] * bucket) for row in first]
        seconds = (time.monotonic() - began) / bucket
        expected = [outputs[0] for outputs in alone]
        copies = [same_bytes(each, outputs[0]) for outputs in alone for each in outputs]
        turned = [[*first[turn:], *first[:turn]] for turn in range(bucket if bucket > 1 else 0)]
        others = [
            same_bytes(output, expected[(place + turn) % bucket])
            for turn, company in enumerate(turned)
            for place, output in enumerate(evaluate(company))
        ]
        if not all((*copies, *others)):
            known.alone = True
            log.warning("%s: in buckets of %d rows bytes depend on the company; each row runs alone", kind, bucket)
            return
        known.proven.add(bucket)
        if seconds > LONG_SECONDS:
            known.most = bucket

    def _part(
        self, kind: Hashable, known: _Kind, evaluate: Evaluate[S], part: Sequence[S], bucket: int
    ) -> Sequence[torch.Tensor]:
        count = max(len(part), bucket)
        outputs = evaluate(filled(part, count))[: len(part)]
        if count in known.proven:
            return outputs
        starts = range(0, len(part), bucket)
        expected = [
            output
            for start in starts
            for output in evaluate(filled(part[start : start + bucket], bucket))[: len(part) - start]
        ]
        if all(map(same_bytes, outputs, expected)):
            known.proven.add(count)
            return outputs
        known.most = max(bucket, count * 3 // 4)
        log.info("%s: batches of %d rows give other bytes than buckets of %d", kind, count, bucket)
        return expected


def filled(rows: Sequence[S], count: int) -> list[S]:
    """The rows, repeated up to this number."""
    return [rows[number % len(rows)] for number in range(count)]


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of one dtype are equal to the last bit, NaN and signs of zeros included."""
    return torch.equal(*(each.contiguous().view(torch.uint8) for each in (one, other)))
