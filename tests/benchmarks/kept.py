"""What the log of kept jobs costs: the same traffic with and without it, on one server."""

import dataclasses
import tempfile
from typing import Any

from tests.benchmarks.bench import Bench
from tests.benchmarks.workload import Traffic, mixed

CLIENTS = 32


def measure(bench: Bench) -> dict[str, Any]:
    """Images/s of mixed clients, ordinary and kept: of twice as many as fill the batches, which stay full while jobs
    wait for the log's disk."""
    with tempfile.TemporaryDirectory() as folder:
        served = bench.serve(DARKROOM_STATE_DIR=folder)

        def traffic(kept: bool) -> Traffic:
            orders = [dataclasses.replace(order, kept=kept) for order in bench.orders(mixed, 4 * CLIENTS)]
            return Traffic(orders, CLIENTS, seconds=bench.options.seconds)

        try:
            served.run(traffic(True))  # warm-up
            ways = {"ordinary": lambda: served.run(traffic(False)), "kept": lambda: served.run(traffic(True))}
            runs = bench.turns(f"{CLIENTS} clients, mixed", ways, rounds=7)
        finally:
            served.stop()
    ratio = runs.over("kept", "ordinary")
    bench.hold(
        f"{CLIENTS} clients, mixed: images/s of kept jobs over ordinary", ratio, at_least={"cpu": 0.99, "cuda": 0.99}
    )
    rows = [{**runs[name].row(name), "ratio": runs.over(name, "ordinary")} for name in runs]
    bench.table("kept jobs, each in the log", rows)
    return {"ratio": ratio, "rows": rows}
