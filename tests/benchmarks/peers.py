"""Baselines and upper bound: diffusers' pipeline on the same weights.

Whatever favours the peers is theirs: they have no transport, encode no PNG, and send no previews.
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.benchmarks.driving import Record, Run, drive
from tests.benchmarks.workload import Order, Traffic

MAX_BATCH = 16  # images
WINDOW = 0.05  # seconds: the batching window of the oldest request


class Peers:
    """One pipeline, and three ways to drive it. One thread runs all of torch, as several OpenMP teams are slower (see
    the server's device/threads.py)."""

    def __init__(self, model: Path, device: str, dtype: Any, compiled: bool = False) -> None:
        from tests.benchmarks.pipelines import Pipelines

        self._thread = ThreadPoolExecutor(1)
        self._pipelines = self._thread.submit(Pipelines, model, device, dtype, compiled).result()

    def _make(self, orders: Sequence[Order]) -> None:
        self._thread.submit(self._pipelines.make, orders).result()

    def fastest_threads(self) -> int:
        """See Pipelines."""
        return self._thread.submit(self._pipelines.fastest_threads).result()

    def warm_up(self, largest: int) -> None:
        """Run a batch of each size: the first one of a size compiles or selects kernels."""
        for size in range(1, largest + 1):
            self._make([Order(seed, steps=2) for seed in range(size)])
        self._make([Order(0, "ddim", steps=2)])  # integer timesteps, for which compiled code is specialised

    def locked(self, traffic: Traffic) -> Run:
        """(a) The pipeline behind a lock: one request at a time, FIFO."""
        return asyncio.run(self._drive(traffic, max_batch=1, window=0.0))

    def batched(self, traffic: Traffic) -> Run:
        """(b) Request-level batching: compatible queued requests form one static batch."""
        return asyncio.run(self._drive(traffic, MAX_BATCH, WINDOW))

    async def _drive(self, traffic: Traffic, max_batch: int, window: float) -> Run:
        batcher = RequestBatcher(self._thread, self._pipelines.make, max_batch, window)
        work = asyncio.create_task(batcher.work())
        run = await drive(batcher.make, traffic)
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
        return run

    def ideal(self, orders: Sequence[Order], seconds: float = 0.0) -> Run:
        """(c) Upper bound: static batches of 16 with one scheduler, with the decodes and row evaluations of these
        orders, without waiting. With `seconds` no batch begins after them."""
        wanted = sum(self._pipelines.row_evaluations(order) for order in orders)
        size = min(MAX_BATCH, len(orders))
        batches = len(orders) // size
        steps, more = divmod(round(wanted / (2 * size)), batches)  # guidance: two rows an image
        began, done = time.perf_counter(), 0
        for batch in range(batches):
            if batch and seconds and time.perf_counter() - began > seconds:
                break
            alike = steps + (batch < more)
            self._make([Order(seed, steps=alike) for seed in range(batch * size, (batch + 1) * size)])
            done += 2 * size * alike
        seconds = (time.perf_counter() - began) * wanted / done  # whole steps: rounded within a percent
        return Run(seconds, [Record(order) for order in orders])


@dataclass(eq=False)
class Waiting:
    """A request in the batcher's queue."""

    order: Order
    record: Record
    since: float
    done: asyncio.Future[None]

    @property
    def kind(self) -> tuple[Any, ...]:
        """The compatibility key of a static batch: one scheduler, one step count, one guidance scale."""
        o = self.order
        return o.scheduler, o.steps, o.guidance, o.task, o.control, o.lora


class RequestBatcher:
    """Dynamic batching as in inference servers: the oldest request goes next, with queued ones of its kind, once the
    batch is full or the window has passed."""

    def __init__(self, thread: ThreadPoolExecutor, run: Any, max_batch: int, window: float) -> None:
        self._thread = thread
        self._run = run
        self._max_batch = max_batch
        self._window = window
        self._queue: list[Waiting] = []
        self._came = asyncio.Event()

    async def make(self, order: Order, record: Record) -> None:
        """Submit an order, and wait for its picture."""
        waiting = Waiting(order, record, time.perf_counter(), asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._came.set()
        await waiting.done

    async def work(self) -> None:
        """The worker loop: batch after batch."""
        while True:
            batch = await self._collect()
            began = time.perf_counter()
            for each in batch:
                each.record.queued = began - each.since
            orders = [each.order for each in batch]
            await asyncio.get_running_loop().run_in_executor(self._thread, self._run, orders)
            for each in batch:
                each.done.set_result(None)

    async def _collect(self) -> list[Waiting]:
        while True:
            self._came.clear()
            batch = [each for each in self._queue if each.kind == self._queue[0].kind][: self._max_batch]
            left = batch[0].since + self._window - time.perf_counter() if batch else None
            if batch and (len(batch) == self._max_batch or left <= 0):
                self._queue = [each for each in self._queue if each not in batch]
                return batch
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._came.wait(), left)


class Apart:
    """Peers in their own process, isolated from the server."""

    def __init__(self, model: Path, device: str, dtype: Any, compiled: bool = False) -> None:
        self._process = ProcessPoolExecutor(1, get_context("spawn"), _open, (model, device, dtype, compiled))

    def run(self, way: str, *work: Any) -> Any:
        """Call a method of Peers."""
        return self._process.submit(_run, way, *work).result()

    def stop(self) -> None:
        self._process.shutdown()


_peers: Peers


def _open(*arguments: Any) -> None:
    global _peers
    _peers = Peers(*arguments)


def _run(way: str, *work: Any) -> Any:
    return getattr(_peers, way)(*work)
