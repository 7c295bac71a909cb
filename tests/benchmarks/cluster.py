"""Replicas on Ray Serve against a single server: throughput of two, and what the edge adds to a job and an event."""

import contextlib
import os
import statistics
import time
from functools import partial
from typing import Any

from tests.benchmarks.bench import Bench
from tests.benchmarks.driving import Run
from tests.benchmarks.served import Served
from tests.benchmarks.workload import Traffic, uniform

FEW, MANY = 2, 50  # steps
RAY = {"DARKROOM_ENGINE": "ray", "DARKROOM_CLUSTER__REPLICA_CPUS": "0.5"}
WAYS = {
    "single server": {},
    "1 replica": {**RAY, "DARKROOM_CLUSTER__REPLICAS": "1"},
    "2 replicas": {**RAY, "DARKROOM_CLUSTER__REPLICAS": "2"},
}


def measure(bench: Bench) -> dict[str, Any]:
    """One thread each. Images/s of each way; seconds that a job and an event take longer than from a single server;
    seconds of the edge's CPU for 1,000 events; `shared_s`: seconds of CPU for a picture that are not the engine's, but
    the edge's, Ray's and the clients'."""
    with contextlib.ExitStack() as stack:
        served = {name: _serve(bench, settings) for name, settings in WAYS.items()}
        for each in served.values():
            stack.callback(each.stop)
            each.run(Traffic(bench.orders(uniform, 16), 16))
        throughput = bench.turns(
            {name: lambda each=each: each.run(bench.traffic(uniform, 32, 16)) for name, each in served.items()}, 2
        )
        latencies = {
            steps: bench.turns({name: partial(_alone, bench, each, steps) for name, each in served.items()}, 2)
            for steps in (FEW, MANY)
        }
        edge, shared = _cpu(bench, served["1 replica"]), _beside_engines(bench, served["1 replica"])
    factor = throughput.over("2 replicas", "1 replica")
    few, many = (_added(latencies[steps]) for steps in (FEW, MANY))
    event = max(0.0, (many - few) / (MANY - FEW))
    rows = [{"system": name, "images/s": throughput[name].images_per_s} for name in WAYS]
    bench.table("a cluster, one thread each", rows)
    figures = {"2 replicas / 1": factor, "ms added a job": few * 1000, "ms added an event": event * 1000}
    bench.table("what the edge adds", [{**figures, "edge's CPU s / 1,000 events": edge, "CPU s / picture": shared}])
    bench.hold("throughput of 2 replicas over 1", factor, at_least={"cpu": 1.8})
    cores = len(os.sched_getaffinity(0))
    return {"rows": rows, **figures, "edge_cpu_s": edge, "shared_s": shared, "cores": cores}


def _serve(bench: Bench, settings: dict[str, str]) -> Served:
    own = {"DARKROOM_THREADS": "1", **settings}
    return Served(None if bench.demo else bench.model, bench.options.device, bench.options.dtype, settings=own)


def _alone(bench: Bench, served: Served, steps: int) -> Run:
    """One client, without previews: an event a step."""
    return served.run(Traffic(bench.orders(partial(uniform, steps=steps), 16 if steps == FEW else 4)))


def _added(turns: Any) -> float:
    """Seconds by which the median latency through the edge is longer, the median over the rounds."""
    pairs = zip(turns.runs["1 replica"], turns.runs["single server"], strict=True)
    return statistics.median(edge.latency(50) - single.latency(50) for edge, single in pairs)


def _cpu(bench: Bench, served: Served) -> float:
    """Seconds of the edge's process for 1,000 events, with a preview at each step."""
    before = served.cpu_seconds
    run = served.run(Traffic(bench.orders(uniform, 32), 16), "full-vae")
    events = sum(len(record.rows) + record.previews + 3 for record in run.records)
    return (served.cpu_seconds - before) / events * 1000


def _beside_engines(bench: Bench, served: Served) -> float:
    """Seconds of CPU for a picture without previews, of all that is no engine."""
    before = served.cpu_seconds_beside_engines + time.process_time()
    run = served.run(bench.traffic(uniform, 32, 16))
    return (served.cpu_seconds_beside_engines + time.process_time() - before) / len(run.records)
