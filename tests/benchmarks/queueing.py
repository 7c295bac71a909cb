"""The cost of queued requests: throughput, memory, and leaked memory."""

import asyncio
import statistics
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from tests.benchmarks.bench import Bench
from tests.benchmarks.served import Served, Stub, request_of
from tests.benchmarks.workload import Order, Traffic, mixed, uniform

KIB, MIB = 2**10, 2**20
BATCH = 16  # requests that fill one batch


def measure(bench: Bench) -> dict[str, Any]:
    """Images/s with 16 to 256 requests in flight, KiB per queued request, MiB not freed after many."""

    def traffic(clients: int) -> Traffic:
        return Traffic(bench.orders(partial(uniform, steps=8), 256), clients)

    runs = bench.turns(
        "requests in flight",
        {str(many): lambda many=many: bench.served.run(traffic(many)) for many in (16, 64, 256)},
        rounds=5,
    )
    rates = {clients: runs[clients].images_per_s for clients in runs}
    waiting = asyncio.run(_waiting(bench.served, 16 if bench.options.smoke else 100)) / KIB
    before, after = _growth(bench)
    bench.hold("images/s from 16 to 256 requests: greatest loss", runs.lost(), at_most={"cpu": 0.05})
    bench.hold("memory of a waiting request, KB", waiting * KIB / 1000, at_most={"cpu": 100})
    rows = [{f"images/s, {clients} requests": rate for clients, rate in rates.items()}]
    more = {"KiB a waiting request": waiting, "MiB": before, "MiB after more requests": after}
    bench.table("what waits (pictures of 8 steps)", [{**rows[0], **more}])
    return {"images_per_s": rates, "waiting_kib": waiting, "before_mib": before, "after_mib": after}


async def _waiting(served: Served, count: int) -> float:
    """Resident bytes per request queued behind a full batch: the slope of nine points, this many requests apart."""
    async with AsyncExitStack() as stack:
        # A client may have half of the queue.
        stubs = [Stub(await stack.enter_async_context(served.channel())) for _ in range(3)]
        calls = [await _begun(stubs[0], Order(seed, steps=500)) for seed in range(BATCH)]
        points = []
        while len(points) < 9:
            seeds = range(len(calls), len(calls) + count)
            calls += await asyncio.gather(*(_begun(stubs[seed % 3], Order(seed, steps=500)) for seed in seeds))
            points.append((len(calls), await _settled(served)))
        for call in calls:
            call.cancel()
    return statistics.linear_regression(*zip(*points, strict=True)).slope


async def _settled(served: Served) -> float:
    """Median resident memory over a second, as a batch's memory fluctuates."""
    samples = []
    for _ in range(20):
        samples.append(served.memory)
        await asyncio.sleep(0.05)
    return statistics.median(samples)


async def _begun(stub: Stub, order: Order) -> Any:
    call = stub.Generate(request_of(order))
    await call.read()
    return call


def _growth(bench: Bench) -> tuple[float, float]:
    """Resident MiB after many requests, and after many more."""
    traffic = Traffic(
        [Order(o.seed, o.scheduler, 4, o.guidance) for o in mixed(32 if bench.options.smoke else 400)], 16
    )
    bench.served.run(traffic, "latent-rgb")
    before = bench.served.memory / MIB
    bench.served.run(traffic, "latent-rgb")
    return before, bench.served.memory / MIB
