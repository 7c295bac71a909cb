"""Seconds of a tick by its rows: what the model of a fleet (`simulate.py`) is fed with."""

import contextlib
import statistics
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import uvloop

from tests.benchmarks.bench import Bench
from tests.benchmarks.driving import Run
from tests.benchmarks.served import PREVIEWS, Served, Stub, request_of
from tests.benchmarks.workload import Order, Traffic, uniform

FEW, MANY = 4, 24  # steps
JOBS = (1, 2, 4, 8, 16)  # at once, of two rows each


def measure(bench: Bench) -> dict[str, Any]:
    """Of a server with one thread, and on a CPU of two that do the same at once, as two replicas do.

    `bytes` are those of an event, by kind. `tick_s` is by rows; `picture_s` is what a picture takes of the device
    beside its steps, and `job_s` what a job takes beside the device. `beside` is how many times as long a tick takes
    while the other server computes.
    """
    with contextlib.ExitStack() as stack:
        servers = [_serve(bench) for _ in range(1 if bench.cuda else 2)]
        for each in servers:
            stack.callback(each.stop)
        ways = {"alone": servers[:1], "beside": servers}
        for jobs in JOBS:
            _at_once(bench, servers, jobs, FEW)  # what is done once
        sent = uvloop.run(_bytes(servers[0]))
        turns = {
            (jobs, steps): bench.turns(
                f"{jobs} jobs of {steps} steps",
                {way: partial(_at_once, bench, ways[way], jobs, steps) for way in ways},
                3,
            )
            for jobs in JOBS
            for steps in (FEW, MANY)
        }
    middle = {(way, *of): statistics.median(run.seconds for run in turns[of].runs[way]) for way in ways for of in turns}
    ticks = {
        (way, jobs): (middle[way, jobs, MANY] - middle[way, jobs, FEW]) / (MANY - FEW) for way in ways for jobs in JOBS
    }
    rest = [middle["alone", jobs, FEW] - FEW * ticks["alone", jobs] for jobs in JOBS]
    picture, job = statistics.linear_regression(JOBS, rest)
    bench.table(
        "seconds of a tick, one thread",
        [{"rows": 2 * jobs, **{way: ticks[way, jobs] for way in ways}} for jobs in JOBS],
        f"a picture takes {picture:.4f} s besides, a job {job:.4f} s",
    )
    return {
        "tick_s": {str(2 * jobs): ticks["alone", jobs] for jobs in JOBS},
        "picture_s": max(0.0, picture),
        "job_s": max(0.0, job),
        "bytes": sent,
        "beside": max(1.0, statistics.median(ticks["beside", jobs] / ticks["alone", jobs] for jobs in JOBS)),
    }


def _serve(bench: Bench) -> Served:
    model = None if bench.demo else bench.model
    return Served(model, bench.options.device, bench.options.dtype, settings={"DARKROOM_THREADS": "1"})


def _at_once(bench: Bench, servers: Sequence[Served], jobs: int, steps: int) -> Run:
    """So many jobs at each server, of which all steps share their batches; seconds are the mean of the servers'."""
    traffics = [Traffic(bench.orders(partial(uniform, steps=steps), jobs), jobs) for _ in servers]
    with ThreadPoolExecutor(len(servers)) as pool:
        runs = list(pool.map(Served.run, servers, traffics))
    return Run(statistics.fmean(run.seconds for run in runs), [record for run in runs for record in run.records])


async def _bytes(served: Served) -> dict[str, float]:
    """The mean of each kind of event of a picture with previews, as messages."""
    sizes = defaultdict(list)
    async with served.channel() as channel:
        async for response in Stub(channel).Generate(request_of(Order(0), PREVIEWS["latent-rgb"])):
            sizes[response.event.WhichOneof("event")].append(response.ByteSize())
    return {kind: statistics.fmean(found) for kind, found in sizes.items()}
