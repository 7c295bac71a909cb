"""Plain numbers that the engine and the calls leave behind. `observe.metrics` gives them names; nothing here knows it.

Each number has one writer; readers on other threads see it a moment late.
"""

from __future__ import annotations

import contextlib
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
ROWS = (1, 2, 4, 8, 16, 32, 64)
EDGES = (64, 128, 256, 512, 768, 1024, 1536, 2048)  # classes of sizes: clients choose freely among sizes


class Distribution:
    """Counts values by upper bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # the last: above all bounds
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


def seconds() -> Distribution:
    """A distribution of seconds."""
    return Distribution(SECONDS)


def size_class(width: int, height: int) -> str:
    """The smallest square of EDGES that has as many pixels: ``"512"``; else ``"larger"``."""
    return next((str(edge) for edge in EDGES if width * height <= edge * edge), "larger")


@dataclass(slots=True)
class EngineNumbers:
    """Written by the engine's thread."""

    waits: Distribution = field(default_factory=seconds)  # from a job's arrival to its first turn
    rows: Distribution = field(default_factory=lambda: Distribution(ROWS))  # of an evaluation
    steps: defaultdict[tuple[str, str], Distribution] = field(  # by model and size class; of a batch
        default_factory=lambda: defaultdict(seconds)
    )
    stepped_rows: Counter[tuple[str, str]] = field(default_factory=Counter)  # evaluated, by the same
    parts: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))  # seconds of ticks, by part
    previews: int = 0  # made
    ends: Counter[str] = field(default_factory=Counter)  # of jobs, by reason; "OK" of those that are done

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Times a part of a tick."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.parts[name] += time.monotonic() - began


@dataclass(slots=True)
class Usage:
    """What a token has had."""

    jobs: int = 0
    pixels: int = 0  # width x height x images


@dataclass(slots=True)
class CallNumbers:
    """Written by the event loop."""

    ends: Counter[tuple[str, str]] = field(default_factory=Counter)  # of calls, by method and reason
    open: Counter[str] = field(default_factory=Counter)  # by method
    usage: defaultdict[str, Usage] = field(default_factory=lambda: defaultdict(Usage))  # by the token's name
