"""Load generator: sends traffic to a system, and records each order's result."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.benchmarks.workload import Order, Traffic


@dataclass
class Record:
    """The result of one order. Times are in seconds."""

    order: Order
    latency: float = 0.0  # from sending to the end; 0: not measured
    queued: float = 0.0  # queueing part of the latency
    first_preview: float | None = None  # since sending
    previews: int = 0
    rows: list[int] = field(default_factory=list)  # rows of each step's batch
    shares: list[tuple[float, float]] = field(default_factory=list)  # time.perf_counter, and how much of it came then


TOGETHER = 0.02  # seconds: what comes within them is of one batch

Make = Callable[[Order, Record], Awaitable[None]]


@dataclass
class Run:
    """The results of one run."""

    seconds: float
    records: list[Record]
    images: float | None = None  # None: one a record
    warm: float = 0.0  # further images, which were made in the warm-up

    @property
    def images_per_s(self) -> float:
        return (len(self.records) if self.images is None else self.images) / self.seconds

    def latency(self, percent: int) -> float:
        """A latency percentile in seconds, interpolated below 100 values."""
        return percentile([record.latency for record in self.records], percent)

    @property
    def first_preview(self) -> float | None:
        """Median time to first preview in seconds; None: no previews."""
        seen = [record.first_preview for record in self.records if record.first_preview is not None]
        return statistics.median(seen) if seen else None

    @property
    def rows(self) -> float | None:
        """Mean batch rows per step; None: unknown."""
        found = [rows for record in self.records for rows in record.rows]
        return statistics.fmean(found) if found else None

    def row(self, system: str) -> dict[str, object]:
        """The row of a table."""
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
    """Interleaved runs of several systems, in order of the rounds."""

    traffic: str
    runs: Mapping[str, Sequence[Run]]

    def __getitem__(self, way: str) -> Run:
        """The run of median duration."""
        runs = sorted(self.runs[way], key=lambda run: run.seconds)
        return runs[len(runs) // 2]

    def __iter__(self) -> Iterator[str]:
        return iter(self.runs)

    def over(self, way: str, other: str) -> float:
        """Median over rounds of the throughput ratio of two systems: paired by round, as a machine's speed drifts."""
        pairs = zip(self.runs[way], self.runs[other], strict=True)
        return statistics.median(run.images_per_s / beside.images_per_s for run, beside in pairs)

    def lost(self) -> float:
        """The largest loss of throughput of one system against another, likewise."""
        return 1 - min(self.over(way, other) for way in self for other in self)


def percentile(values: list[float], percent: int) -> float:
    """A percentile of one value or more."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


async def drive(make: Make, traffic: Traffic) -> Run:
    """Send the traffic's orders, and wait for all; or with a window until it ends."""
    if traffic.seconds:
        return await _window(make, traffic)
    records = [Record(order) for order in traffic.orders]
    began = time.perf_counter()
    if traffic.arrivals:
        tasks = [_stranger(make, record, began + at) for record, at in zip(records, traffic.arrivals, strict=True)]
    else:
        tasks = [_client(make, records[client :: traffic.clients]) for client in range(traffic.clients)]
    await asyncio.gather(*tasks)
    return Run(time.perf_counter() - began, records)


async def _window(make: Make, traffic: Traffic) -> Run:
    """The clients ask on and on; a quarter of the window is for warming up. At least one picture is waited for."""
    began, orders, records = time.perf_counter(), traffic.endless(), []
    first = asyncio.Event()

    async def client() -> None:
        for order in orders:
            record = Record(order)
            records.append(record)
            await _send(make, record)
            first.set()

    clients = [asyncio.ensure_future(client()) for _ in range(traffic.clients)]
    await asyncio.wait(clients, timeout=traffic.seconds, return_when=asyncio.FIRST_EXCEPTION)
    waiting = asyncio.ensure_future(first.wait())
    await asyncio.wait([waiting, *clients], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    for each in clients:
        each.cancel()
    for outcome in await asyncio.gather(*clients, return_exceptions=True):
        if not isinstance(outcome, asyncio.CancelledError):
            raise outcome
    done = [record for record in records if record.latency]
    return rate([share for record in records for share in record.shares], began, traffic.seconds / 4, done)


def rate(shares: list[tuple[float, float]], began: float, warm: float, done: list[Record]) -> Run:
    """What came from the first share after the warm-up to the last one, and how long it took: shares of one batch come
    together, and those of the first one belong to the time before."""
    shares.sort()
    last = shares[-1][0]
    start = next((moment for moment, _ in shares if moment >= began + warm), last)
    if last - start <= TOGETHER:
        return Run(last - began, done, sum(share for _, share in shares))
    counted = sum(share for moment, share in shares if moment > start + TOGETHER)
    return Run(last - start, done, counted, sum(share for _, share in shares) - counted)


async def _client(make: Make, records: list[Record]) -> None:
    for record in records:
        await _send(make, record)


async def _stranger(make: Make, record: Record, at: float) -> None:
    await asyncio.sleep(max(0.0, at - time.perf_counter()))
    await _send(make, record)


async def _send(make: Make, record: Record) -> None:
    began = time.perf_counter()
    await make(record.order, record)
    ended = time.perf_counter()
    record.latency = ended - began
    record.shares = record.shares or [(ended, 1.0)]
