"""Row buckets: batches of few different numbers of rows, filled with repeated rows.

On CUDA each number of rows costs a choice of kernels the first time, so all batches have one of a few sizes.

The last bits of a row's output depend on the number of rows, as kernels are chosen by shape. Deterministic rows are
therefore evaluated in the numbers of rows that give the bytes of the smallest one, the bucket, in which a row's bytes
depend neither on its company nor on its place. Which do is not assumed: the first time that a number comes up, its rows
are evaluated in smaller numbers that are known to, too, and compared.
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

# Of the thread for a bucket: above, larger batches gain nothing, and comparing them would take minutes. Not of a clock,
# which on a busy machine would tell so of any.
LONG_SECONDS = 0.25
KINDS = 256  # whose row counts are remembered
# Repeated rows for which batches are not divided: up to this part of the others, and in batches of up to so many rows,
# which cost a GPU hardly more than fewer.
PADDING, SMALL = 0.25, 8

S = TypeVar("S")
Evaluate: TypeAlias = Callable[[Sequence[S]], Sequence[torch.Tensor]]


@dataclass(slots=True)
class _Kind:
    """What is known of evaluations of one kind."""

    proven: set[int] = field(default_factory=set)  # numbers of rows that give the bucket's bytes
    above: int = sys.maxsize  # from where on none is tried: this one gave others, or is too slow to compare
    alone: bool = False  # not even in a bucket do rows keep their bytes beside others

    @property
    def most(self) -> int:
        """Rows to try: halfway to where bytes change."""
        return (max(count for count in self.proven if count < self.above) + self.above) // 2


class Buckets:
    """Evaluates rows in buckets."""

    def __init__(self) -> None:
        self._kinds: OrderedDict[Hashable, _Kind] = OrderedDict()

    def run(
        self, kind: Hashable, evaluate: Evaluate[S], rows: Sequence[S], bucket: int, sizes: Sequence[int] = ()
    ) -> list[torch.Tensor]:
        """The output of each row, of equal bytes whatever rows come with it. `evaluate` gets at least `bucket` rows,
        some of them repeated, and has no side effects that depend on their company. `kind`: all that is equal for such
        rows and may change kernels. `sizes`: the numbers of rows to evaluate, where they are enough for `bucket`; none:
        any."""
        known = self._known(kind)
        if not known.alone and bucket not in known.proven:
            self._prove_bucket(kind, known, evaluate, rows, bucket)
        if known.alone:
            return [evaluate([row] * bucket)[0] for row in rows]
        outputs: list[torch.Tensor] = []
        while left := len(rows) - len(outputs):
            parts = -(-left // known.most)  # as equal as can be: few rows cost as much as a few more
            fitting = [size for size in sizes if size <= known.most]
            size = max(bucket, next_size(-(-left // parts), fitting))
            part = rows[len(outputs) :][: min(size, -(-left // parts))]
            outputs += self._part(kind, known, evaluate, part, size, bucket)
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
        first, began = filled(rows[:bucket], bucket), time.thread_time()
        alone = [evaluate([row] * bucket) for row in first]
        seconds = (time.thread_time() - began) / bucket
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
            known.above = bucket + 1

    def _part(
        self, kind: Hashable, known: _Kind, evaluate: Evaluate[S], part: Sequence[S], count: int, bucket: int
    ) -> Sequence[torch.Tensor]:
        outputs = evaluate(filled(part, count))[: len(part)]
        if count in known.proven:
            return outputs
        expected = in_sizes(evaluate, part, [each for each in known.proven if each < count])
        if all(map(same_bytes, outputs, expected)):
            known.proven.add(count)
            return outputs
        known.above = count
        log.info("%s: batches of %d rows give other bytes than buckets of %d", kind, count, bucket)
        return expected


def in_sizes(evaluate: Evaluate[S], rows: Sequence[S], sizes: Sequence[int]) -> list[torch.Tensor]:
    """The output of each row, evaluated in batches of these sizes; none: of all rows."""
    outputs: list[torch.Tensor] = []
    while left := rows[len(outputs) :]:
        size = next_size(len(left), sizes)
        outputs += evaluate(filled(left[:size], size))[: len(left)]
    return outputs


def next_size(rows: int, sizes: Sequence[int]) -> int:
    """The size of the next batch of this many rows: one that holds all, unless too much of it would be repeated; else
    the largest that they fill. Without sizes all."""
    above = min((size for size in sizes if size >= rows), default=None)
    below = max((size for size in sizes if size <= rows), default=None)
    if above is None or (below is not None and above > max(SMALL, (1 + PADDING) * rows)):
        return below or rows
    return above


def filled(rows: Sequence[S], count: int) -> list[S]:
    """The rows, repeated up to this number."""
    return [rows[number % len(rows)] for number in range(count)]


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of one dtype are equal to the last bit, NaN and signs of zeros included."""
    return torch.equal(*(each.contiguous().view(torch.uint8) for each in (one, other)))
