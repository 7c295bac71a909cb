"""Admission under load: a flood beside a light client, estimates, refusals, and 500 streams at once."""

import asyncio
import itertools
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import uvloop
from grpc import aio
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from darkroom.v1 import catalog_service_pb2, catalog_service_pb2_grpc
from tests.benchmarks.bench import Bench
from tests.benchmarks.driving import percentile
from tests.benchmarks.served import Served, Stub, request_of
from tests.benchmarks.workload import Order

LIGHT = 8  # steps of the light client's pictures
FLOOD = 200
STEPS = (8, 20, 35, 50)  # of the pictures of a mixed load, as many of each
WARM_UP = 2.0  # seconds
NEAR, NEAR_SECONDS = 0.25, 1.0  # an estimate is right within the greater of both
OWN = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own: another client


@dataclass
class Made:
    """One picture. Seconds."""

    latency: float
    steps: list[float]  # time.perf_counter of each
    wait: float | None  # as estimated when it was accepted
    end: float | None
    waited: float


def measure(bench: Bench) -> dict[str, Any]:
    """The figures of admission, against their bars."""
    smoke = bench.options.smoke
    flood = uvloop.run(_flood(bench.served, *((20, 1) if smoke else (FLOOD, 5))))
    estimates = uvloop.run(_estimates(bench.served, *((2.0, 1) if smoke else (30.0, 4))))
    streams = uvloop.run(_streams(bench.served, 20 if smoke else 500))
    refusals = uvloop.run(_refusals(bench.served, 1.0 if smoke else 10.0))
    bench.hold("beside a flood: (seconds less one step) over alone", flood["ratio"], at_most={"cpu": 1.5})
    bench.hold("starts within 25 % or 1 s of the estimate", estimates["starts"], at_least={"cpu": 0.9})
    bench.hold("refusals at tenfold overload, p99, ms", refusals["p99 ms"], at_most={"cpu": 10})
    over = refusals["p99 ms"] / refusals["empty p99 ms"]
    bench.hold("refusals at tenfold overload, p99, over an empty call's", over, at_most={"cpu": 1.25})
    bench.hold("500 streams at once: neither done nor refused with a hint", streams["lost"], at_most={"cpu": 0})
    bench.table(f"a picture of {LIGHT} steps beside a flood of {FLOOD} by another client", [flood])
    bench.table("estimates at 80 % load, and how far they are off", [estimates])
    bench.table("refusals at tenfold overload", [refusals])
    bench.table("500 streams at once", [streams])
    return {"flood": flood, "estimates": estimates, "refusals": refusals, "streams": streams}


@asynccontextmanager
async def _client(served: Served) -> AsyncIterator[Any]:
    async with aio.insecure_channel(served.address, options=OWN) as channel:
        await channel.channel_ready()
        yield Stub(channel)


async def _make(stub: Any, order: Order, made: Made | None = None) -> Made:
    began, made = time.perf_counter(), made or Made(0.0, [], None, None, 0.0)
    async for response in stub.Generate(request_of(order)):
        event = response.event
        match event.WhichOneof("event"):
            case "accepted":
                accepted = event.accepted
                made.wait = accepted.estimated_wait_seconds if accepted.HasField("estimated_wait_seconds") else None
                made.end = accepted.estimated_end_seconds if accepted.HasField("estimated_end_seconds") else None
            case "step":
                made.steps.append(time.perf_counter())
            case "completed":
                made.waited = event.completed.timings.queue_seconds
    made.latency = time.perf_counter() - began
    return made


async def _flood(served: Served, count: int, rounds: int) -> dict[str, float]:
    """Alone and beside a flood in turn; each round has the flood's step of its own time."""
    found = [await _beside_flood(served, count, 3 if rounds > 1 else 1, seed) for seed in range(rounds)]
    middle = {name: statistics.median(each[name] for each in found) for name in found[0]}
    return {
        **middle,
        "least ratio": min(each["ratio"] for each in found),
        "greatest": max(each["ratio"] for each in found),
    }


async def _beside_flood(served: Served, count: int, pictures: int, seed: int) -> dict[str, float]:
    """Pictures of a client without others, then beside a flood of another; of each the median."""
    async with _client(served) as flooding, _client(served) as light:

        async def median() -> float:
            made = []
            for number in range(pictures):
                made.append((await _make(light, Order(1000 * seed + number, steps=LIGHT))).latency)
                await asyncio.sleep(0.3)
            return statistics.median(made)

        await _make(light, Order(1000 * seed + 99, steps=LIGHT))
        alone = await median()
        running = [Made(0.0, [], None, None, 0.0) for _ in range(count)]
        flood = [
            asyncio.ensure_future(_make(flooding, Order(1000 * seed + 100 + number, steps=50), made))
            for number, made in enumerate(running)
        ]
        await asyncio.sleep(3.0)
        gaps = [after - before for each in running for before, after in zip(each.steps, each.steps[1:], strict=False)]
        beside = await median()
        pending = sum(not each.done() for each in flood)
        for each in flood:
            each.cancel()
        await asyncio.gather(*flood, return_exceptions=True)
    step = statistics.median(gaps) if gaps else 0.0
    return {
        "alone s": alone,
        "beside s": beside,
        "a step of the flood s": step,
        "ratio": (beside - step) / alone,
        "flood left": pending,
    }


async def _rate(clients: Sequence[Any], seconds: float) -> float:
    """Pictures a second of a closed loop of 32, which these clients share: by the steps that are made once all run, so
    that the long ones count as the short ones do."""
    made, seeds = list[Made](), itertools.count()

    async def ask() -> None:
        for seed in seeds:
            made.append(Made(0.0, [], None, None, 0.0))
            await _make(clients[seed // 4 % len(clients)], _mixed(seed), made[-1])

    asking = [asyncio.ensure_future(ask()) for _ in range(32)]
    await asyncio.sleep(WARM_UP)
    began = time.perf_counter()
    await asyncio.sleep(seconds)
    steps = sum(at >= began for each in made for at in each.steps) / (time.perf_counter() - began)
    for each in asking:
        each.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    return steps / statistics.fmean(STEPS)


def _mixed(seed: int) -> Order:
    return Order(seed, steps=STEPS[seed % len(STEPS)])


async def _estimates(served: Served, seconds: float, rounds: int) -> dict[str, float]:
    """Open loop, from four clients, at 80 % of what they get in a closed loop. Anew in each round: at 90 % a quarter of
    the estimates are wrong, and a machine's speed changes by as much within minutes."""
    chance, rates, made = random.Random(7), list[float](), list[Made]()
    async with _client(served) as a, _client(served) as b, _client(served) as c, _client(served) as d:
        for _ in range(rounds):
            rates.append(0.8 * await _rate((a, b, c, d), seconds / 3))
            tasks, began, due = [], time.perf_counter(), 0.0
            while due < seconds:
                due += chance.expovariate(rates[-1])
                await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
                stub = chance.choice((a, b, c, d))
                tasks.append(asyncio.ensure_future(_make(stub, _mixed(10_000 + len(made) + len(tasks)))))
            made += await asyncio.gather(*tasks)
    starts = [each.waited - each.wait for each in made if each.wait is not None]
    ends = [each.latency - each.end for each in made if each.end is not None]
    near = [_near(each.wait, each.waited) for each in made]
    return {
        "pictures/s": statistics.fmean(rates),
        "pictures": len(made),
        "starts": statistics.fmean(near),
        "ends": statistics.fmean([_near(each.end, each.latency) for each in made]),
        "ends within 25 %": statistics.fmean([_near(each.end, each.latency, 0.0) for each in made]),
        "start off, median s": statistics.median(map(abs, starts)),
        "waited, p90 s": percentile([each.waited for each in made], 90),
        "end off, median s": statistics.median(map(abs, ends)),
    }


def _near(estimate: float | None, real: float, seconds: float = NEAR_SECONDS) -> bool:
    return estimate is not None and abs(estimate - real) <= max(NEAR * real, seconds)


async def _refusals(served: Served, seconds: float) -> dict[str, float]:
    """Ten times as many orders as can be done, open loop, from a process of its own, while the queue is full: that
    process does nothing else, so that what it measures is the server's. Beside them as many empty calls: what a call
    takes at least, where compute threads keep all cores busy."""
    async with _client(served) as measured:
        rate = 10 * await _rate([measured], seconds / 5)
    limits = await _limits(served)
    own = limits.max_queued_jobs_per_client
    floods = [served.channel() for _ in range(-(-limits.max_queued_jobs // own))]  # each as many as may wait
    queues = [
        [
            asyncio.ensure_future(_refused(Stub(channel), Order(seed, steps=50), [], Counter()))
            for seed in range(own + 40)
        ]
        for channel in floods
    ]
    for queue in queues:  # until one of each is refused
        await asyncio.wait(queue, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(2.0)
    command = [sys.executable, "-m", __name__, served.address, str(rate), str(seconds)]
    asking = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    written, _ = await asking.communicate()
    flood = [each for queue in queues for each in queue]
    for each in flood:
        each.cancel()
    await asyncio.gather(*flood, return_exceptions=True)
    for channel in floods:
        await channel.close()
    found = json.loads(written)
    milliseconds, empty = ([1000 * each for each in found[kind]] for kind in ("waits", "empty"))
    return {
        "calls/s": rate,
        "refused": len(milliseconds),
        "with a hint": found["outcomes"].get("hint", 0),
        "p50 ms": percentile(milliseconds, 50),
        "p99 ms": percentile(milliseconds, 99),
        "greatest ms": max(milliseconds),
        "empty p50 ms": percentile(empty, 50),
        "empty p99 ms": percentile(empty, 99),
    }


async def _ask(address: str, rate: float, seconds: float) -> None:
    """Orders at random times, so many a second, and as many empty calls; writes what became of those that were refused,
    and the seconds of both."""
    waits, empty = list[float](), list[float]()
    outcomes: Counter[str] = Counter()
    async with aio.insecure_channel(address) as channel:
        await channel.channel_ready()
        stub, health, chance, tasks = Stub(channel), HealthStub(channel), random.Random(3), []
        began, due = time.perf_counter(), 0.0
        while due < seconds:
            due += chance.expovariate(2 * rate)
            await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
            order = Order(len(tasks), steps=50)
            call = _refused(stub, order, waits, outcomes) if len(tasks) % 2 else _empty(health, empty)
            tasks.append(asyncio.ensure_future(call))
        await asyncio.wait(tasks, timeout=1.0)
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    print(json.dumps({"waits": waits, "outcomes": outcomes, "empty": empty}))


async def _empty(health: Any, seconds: list[float]) -> None:
    began = time.perf_counter()
    await health.Check(HealthCheckRequest())
    seconds.append(time.perf_counter() - began)


async def _limits(served: Served) -> Any:
    async with aio.insecure_channel(served.address) as channel:
        catalog = catalog_service_pb2_grpc.CatalogServiceStub(channel)
        info = await catalog.GetServerInfo(catalog_service_pb2.GetServerInfoRequest())
        return info.limits


async def _refused(stub: Any, order: Order, waits: list[float], outcomes: Counter[str]) -> None:
    """One call; if it is refused, the seconds until then."""
    began = time.perf_counter()
    try:
        await _make(stub, order)
    except aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            waits.append(time.perf_counter() - began)
            outcomes["hint"] += "grpc-retry-pushback-ms" in dict(error.trailing_metadata() or ())
        else:
            outcomes[error.code().name] += 1


async def _streams(served: Served, count: int) -> dict[str, float]:
    """All begin at once, on two connections."""
    waits: list[float] = []
    outcomes: Counter[str] = Counter()
    async with _client(served) as one, _client(served) as other:
        orders = [Order(seed, steps=LIGHT) for seed in range(count)]
        began = time.perf_counter()
        calls = [_refused((one, other)[order.seed % 2], order, waits, outcomes) for order in orders]
        await asyncio.gather(*calls)
        seconds = time.perf_counter() - began
    failed = sum(many for outcome, many in outcomes.items() if outcome != "hint")
    return {
        "done": count - len(waits) - failed,
        "refused with a hint": outcomes["hint"],
        "lost": failed + len(waits) - outcomes["hint"],
        "seconds": seconds,
        "pictures/s": (count - len(waits) - failed) / seconds,
    }


if __name__ == "__main__":
    uvloop.run(_ask(sys.argv[1], float(sys.argv[2]), float(sys.argv[3])))
