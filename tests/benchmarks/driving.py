"""Sends traffic to whatever makes pictures, and keeps what came of each order."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.benchmarks.workload import Order, Traffic


@dataclass
class Record:
    """What came of one order. Times are in seconds."""

    order: Order
    latency: float = 0.0  # from its sending to its end; 0: nobody waited for it
    queued: float = 0.0  # of that, before work on it began
    first_preview: float | None = None  # after its sending
    previews: int = 0
    rows: list[int] = field(default_factory=list)  # of each step's batch


Make = Callable[[Order, Record], Awaitable[None]]


@dataclass
class Run:
    """What came of all."""

    seconds: float
    records: list[Record]

    @property
    def images_per_s(self) -> float:
        return len(self.records) / self.seconds

    def latency(self, percent: int) -> float:
        """The percentile of the latencies, in seconds; of fewer than 100 it lies between the two nearest."""
        return percentile([record.latency for record in self.records], percent)

    @property
    def first_preview(self) -> float | None:
        """The median time until a client sees something, in seconds; None: there are no previews."""
        seen = [record.first_preview for record in self.records if record.first_preview is not None]
        return statistics.median(seen) if seen else None

    @property
    def rows(self) -> float | None:
        """The mean rows of a batch that a step shared; None: not known."""
        found = [rows for record in self.records for rows in record.rows]
        return statistics.fmean(found) if found else None

    def row(self, system: str) -> dict[str, object]:
        """Its line of a table."""
        return {
            "system": system,
            "images/s": self.images_per_s,
            "p50 s": self.latency(50) or None,
            "p99 s": self.latency(99) or None,
            "queued s": statistics.median(record.queued for record in self.records),
            "preview s": self.first_preview,
            "previews": statistics.fmean(record.previews for record in self.records),
            "rows": self.rows,
        }


@dataclass
class Turns:
    """What came of several ways that took turns: the runs of each, in the order of the rounds."""

    runs: Mapping[str, Sequence[Run]]

    def __getitem__(self, way: str) -> Run:
        """The run that took the median time."""
        runs = sorted(self.runs[way], key=lambda run: run.seconds)
        return runs[len(runs) // 2]

    def __iter__(self) -> Iterator[str]:
        return iter(self.runs)

    def over(self, way: str, other: str) -> float:
        """Images a second of one way over those of another: of each round, as a machine is not as fast in all of them,
        and the median of that."""
        pairs = zip(self.runs[way], self.runs[other], strict=True)
        return statistics.median(run.images_per_s / beside.images_per_s for run, beside in pairs)

    def lost(self) -> float:
        """The greatest share of images a second that one way makes less than another, likewise."""
        return 1 - min(self.over(way, other) for way in self for other in self)


def percentile(values: list[float], percent: int) -> float:
    """Of one value or more."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


async def drive(make: Make, traffic: Traffic) -> Run:
    """Send the orders as the traffic says, and wait for all."""
    records = [Record(order) for order in traffic.orders]
    began = time.perf_counter()
    if traffic.arrivals:
        tasks = [_stranger(make, record, began + at) for record, at in zip(records, traffic.arrivals, strict=True)]
    else:
        tasks = [_client(make, records[client :: traffic.clients]) for client in range(traffic.clients)]
    await asyncio.gather(*tasks)
    return Run(time.perf_counter() - began, records)


async def _client(make: Make, records: list[Record]) -> None:
    for record in records:
        await _send(make, record)


async def _stranger(make: Make, record: Record, at: float) -> None:
    await asyncio.sleep(max(0.0, at - time.perf_counter()))
    await _send(make, record)


async def _send(make: Make, record: Record) -> None:
    began = time.perf_counter()
    await make(record.order, record)
    record.latency = time.perf_counter() - began
