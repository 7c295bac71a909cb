"""How many threads compute on a CPU: as many as the process may use, or fewer where fewer are faster.

A parallel loop ends when its last thread does. Where other processes use the same processors, a thread may not be
running, and all others wait for it: two threads beside ten busy processes were a tenth as fast as one. So fewer threads
are tried now and then while the server serves, at once where the engine's own thread does not get to run, and those
that were faster stay.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

TRIAL = 3  # evaluations with each of two numbers of threads, in turns; or one, if one takes CLEARLY longer
CLEARLY = 3.0  # times
GAIN = 0.9  # of the time: the other number of threads must take less
FIRST_PAUSE, LONGEST_PAUSE = 10.0, 300.0  # seconds between trials: doubled after each that changed nothing
COST = 20  # a pause is so many times as long as what precedes it, at least: a trial, or the first evaluation of a kind
STARVED = 0.5  # of an evaluation's time: if its thread ran for less, others took the processors from it
CHANGED = 2.0  # an evaluation that takes so many times longer than usual is followed by a trial


@dataclass(slots=True)
class _Kind:
    """What is known of evaluations of one kind."""

    threads: int
    other: int | None = None  # in a trial: the other number of threads
    samples: dict[int, list[float]] = field(default_factory=dict)  # of the trial, seconds by threads
    usual: float | None = None  # seconds, a moving average
    trial_at: float | None = None  # time.monotonic; None before the first evaluation, which is no part of a trial
    pause: float = FIRST_PAUSE
    fewer: bool = True  # whether the next trial is with fewer threads
    starved: bool = False  # the latest evaluation was: more threads are not tried then


class ThreadTuner:
    """Sets the number of threads for each evaluation on the engine's thread. `set_threads` is torch.set_num_threads."""

    def __init__(
        self,
        most: int,
        set_threads: Callable[[int], None],
        adaptive: bool = True,
        clock: Callable[[], float] = time.monotonic,
        running: Callable[[], float] = time.thread_time,
    ) -> None:
        """`running`: the seconds for which the engine's thread has run on a processor."""
        self.most = most
        self._set_threads, self._clock, self._running = set_threads, clock, running
        self._adaptive = adaptive and most > 1
        self._kinds: dict[Hashable, _Kind] = {}
        self._latest = most

    def settle(self, kind: Hashable, fixed: bool = False) -> None:
        """Set the number for other work beside evaluations of this kind."""
        known = self._kinds.get(kind)
        tuned = known.threads if known is not None else self._latest
        self._set_threads(self.most if fixed or not self._adaptive else tuned)

    @contextmanager
    def evaluation(self, kind: Hashable, fixed: bool = False) -> Iterator[None]:
        """Context manager around an evaluation. The last bits of results depend on the number of threads: where they
        must not change it is `fixed`, all threads."""
        if fixed or not self._adaptive:
            self._set_threads(self.most)
            yield
            return
        known = self._kinds.setdefault(kind, _Kind(self._latest))
        began, ran = self._clock(), self._running()
        threads = self._choose(known, began)
        self._set_threads(threads)
        yield
        seconds = self._clock() - began
        known.starved = self._running() - ran < STARVED * seconds
        self._record(known, threads, seconds)

    def _choose(self, known: _Kind, now: float) -> int:
        if known.other is None and known.trial_at is not None and now >= known.trial_at:
            other = self._neighbour(known)
            if other != known.threads:
                known.other, known.samples = other, {known.threads: [], other: []}
        if known.other is None:
            return known.threads
        return min(known.samples, key=lambda threads: len(known.samples[threads]))

    def _neighbour(self, known: _Kind) -> int:
        down, up = max(1, known.threads // 2), min(self.most, 2 * known.threads)
        if known.starved:
            return down
        first, second = (down, up) if known.fewer else (up, down)
        known.fewer = not known.fewer
        return first if first != known.threads else second

    def _record(self, known: _Kind, threads: int, seconds: float) -> None:
        if known.other is not None:
            known.samples[threads].append(seconds)
            if _is_over(known.samples.values()):
                self._decide(known)
        elif known.trial_at is None:
            known.trial_at = self._clock() + (0.0 if known.starved else max(known.pause, COST * seconds))
        elif known.usual is not None and seconds > CHANGED * known.usual:
            known.trial_at, known.usual = 0.0, seconds
        else:
            known.usual = seconds if known.usual is None else 0.8 * known.usual + 0.2 * seconds

    def _decide(self, known: _Kind) -> None:
        """End the trial."""
        assert known.other is not None
        length = sum(map(sum, known.samples.values()))
        now, other = (statistics.median(known.samples[threads]) for threads in (known.threads, known.other))
        if other < GAIN * now:
            known.fewer = known.other < known.threads  # next further in the same direction
            known.threads, known.pause = known.other, FIRST_PAUSE
            self._latest = known.other
        else:
            known.pause = min(2 * known.pause, LONGEST_PAUSE)
        known.trial_at = self._clock() + max(known.pause, COST * length)
        known.other, known.usual = None, None


def _is_over(samples: Collection[Sequence[float]]) -> bool:
    """Whether a trial tells enough, of these seconds with each of its two numbers of threads."""
    fewest = min(map(len, samples))
    return fewest >= TRIAL or (fewest > 0 and max(map(min, samples)) > CLEARLY * min(map(min, samples)))
