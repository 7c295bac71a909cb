"""What the log of kept jobs costs: the same traffic with and without it, on one server."""

import dataclasses
import statistics
import tempfile
from collections import defaultdict
from typing import Any

from tests.benchmarks.bench import Bench
from tests.benchmarks.driving import Run
from tests.benchmarks.workload import Traffic, mixed

CLIENTS = 32  # twice as many as fill the batches, which stay full while jobs wait for the log's disk
NOTE = """\
beside the engine: CPU ms of the server for a picture, without its engine's thread. cost: what kept jobs take more of
it, over all that an ordinary picture takes. Images/s of such runs differ by more than that."""


def measure(bench: Bench) -> dict[str, Any]:
    """Images/s of mixed clients, ordinary and kept, and CPU seconds of a picture. The engine has one thread."""
    beside, whole = defaultdict[str, list[float]](list), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        served = bench.serve(DARKROOM_STATE_DIR=folder, DARKROOM_THREADS="1")

        def run(name: str) -> Run:
            orders = [dataclasses.replace(each, kept=name == "kept") for each in bench.orders(mixed, 4 * CLIENTS)]
            before = served.threads
            done = served.run(Traffic(orders, CLIENTS))
            spent = [seconds - before.get(thread, 0.0) for thread, seconds in served.threads.items()]
            beside[name].append(1000 * (sum(spent) - max(spent)) / len(orders))
            if name == "ordinary":
                whole.append(1000 * sum(spent) / len(orders))
            return done

        try:
            run("kept")  # warm-up
            beside.clear()
            runs = bench.turns(
                f"{CLIENTS} clients, mixed", {name: lambda name=name: run(name) for name in ("ordinary", "kept")}, 5
            )
        finally:
            served.stop()
    took = {name: statistics.median(found) for name, found in beside.items()}
    cost = (took["kept"] - took["ordinary"]) / statistics.median(whole)
    bench.hold("the log's share of a picture's CPU time", cost, at_most={"cpu": 0.01, "cuda": 0.01})
    rows = [
        {**runs[name].row(name), "ratio": runs.over(name, "ordinary"), "beside the engine": took[name]} for name in runs
    ]
    bench.table("kept jobs, each in the log", rows, NOTE)
    return {"cost": cost, "ratio": runs.over("kept", "ordinary"), "rows": rows}
