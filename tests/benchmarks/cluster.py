"""Replicas on Ray Serve against a single server: throughput of two, and what the edge adds to a job and an event."""

import contextlib
import os
import statistics
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

from tests.benchmarks.bench import Bench
from tests.benchmarks.driving import Run
from tests.benchmarks.served import ENGINES, Served, spent
from tests.benchmarks.workload import Traffic, uniform

FEW, MANY = 2, 50  # steps
CLIENTS = 64  # twice as many as fill the batches of two replicas: others wait at each of them
WINDOW = 40.0  # seconds: after a fixed number of pictures a cluster ends with batches that are not full
RAY = {"DARKROOM_ENGINE": "ray", "DARKROOM_CLUSTER__REPLICA_CPUS": "0.5"}
WAYS = {
    "single server": {},
    "1 replica": {**RAY, "DARKROOM_CLUSTER__REPLICAS": "1"},
    "2 replicas": {**RAY, "DARKROOM_CLUSTER__REPLICAS": "2"},
}


def measure(bench: Bench) -> dict[str, Any]:
    """One thread each. Images/s of each way, with all batches full, and further jobs that wait: neither engine waits
    for clients. CPU seconds of a picture, by process, and what this machine's cores allow by them. What a job and an
    event take longer than from a single server; seconds of the edge's CPU for 1,000 events. `shared_s`: seconds of CPU
    for a picture that are not the engine's, but the edge's, Ray's and the clients'.

    The throughput is without previews, as those are encoded by further threads: one replica would have two cores.
    """
    used: dict[str, Counter[str]] = {name: Counter() for name in WAYS}
    throughput = bench.turns(
        "full batches", {name: partial(_throughput, bench, WAYS[name], used[name]) for name in WAYS}, 3
    )
    with contextlib.ExitStack() as stack:
        served = {name: stack.enter_context(_serve(bench, WAYS[name])) for name in ("single server", "1 replica")}
        latencies = {
            steps: bench.turns(
                f"one job of {steps} steps",
                {name: partial(_alone, bench, each, steps) for name, each in served.items()},
                2,
            )
            for steps in (FEW, MANY)
        }
        edge = _cpu(bench, served["1 replica"])
    factor = throughput.over("2 replicas", "1 replica")
    few, many = (_added(latencies[steps]) for steps in (FEW, MANY))
    event = max(0.0, (many - few) / (MANY - FEW))
    rows = [{"system": name, "images/s": throughput[name].images_per_s} for name in WAYS]
    bench.table("a cluster, one thread each", rows)
    shares = {name: _of_a_picture(used[name]) for name in ("1 replica", "2 replicas")}
    shared = sum(seconds for of, seconds in shares["1 replica"].items() if of != ENGINES)
    cores = len(os.sched_getaffinity(0))
    allowed = min(2.0, cores / sum(shares["2 replicas"].values()) / throughput["1 replica"].images_per_s)
    bench.table(
        "CPU seconds of a picture",
        [{"system": name, **share, "all": sum(share.values())} for name, share in shares.items()],
        f"by those of two replicas {cores} cores allow {allowed:.2f} times the throughput of one",
    )
    figures = {"2 replicas / 1": factor, "ms added a job": few * 1000, "ms added an event": event * 1000}
    bench.table("what the edge adds", [{**figures, "edge's CPU s / 1,000 events": edge, "CPU s / picture": shared}])
    bench.hold("throughput of 2 replicas over 1", factor, at_least={"cpu": 1.8})
    workload = {"clients": CLIENTS, "seconds": _window(bench), "cores": cores}
    costs = {"edge_cpu_s": edge, "shared_s": shared, "cpu_s": shares, "cores_allow": allowed}
    return {"rows": rows, **figures, **workload, **costs}


@contextlib.contextmanager
def _serve(bench: Bench, settings: dict[str, str]) -> Iterator[Served]:
    own = {"DARKROOM_THREADS": "1", **settings}
    served = Served(None if bench.demo else bench.model, bench.options.device, bench.options.dtype, settings=own)
    try:
        served.run(Traffic(bench.orders(uniform, CLIENTS), CLIENTS))
        yield served
    finally:
        served.stop()


def _throughput(bench: Bench, settings: dict[str, str], used: Counter[str]) -> Run:
    """Of a server that is alone on the machine: a cluster takes CPU time while it waits, too. Adds to `used` the CPU
    seconds by process, and the pictures."""
    with _serve(bench, settings) as served:
        before = served.cluster_threads
        run = served.run(Traffic(bench.orders(uniform, CLIENTS), CLIENTS, seconds=_window(bench)))
        used.update(spent(before, served.cluster_threads))
    assert run.images is not None
    used["pictures"] += run.images + run.warm
    return run


def _window(bench: Bench) -> float:
    return bench.options.seconds or (2.0 if bench.options.smoke else WINDOW)


def _of_a_picture(used: Counter[str]) -> dict[str, float]:
    return {of: seconds / used["pictures"] for of, seconds in used.items() if of != "pictures"}


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
