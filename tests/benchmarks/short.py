"""Head-of-line blocking: short jobs behind long ones."""

import statistics
from typing import Any

from tests.benchmarks.bench import Bench
from tests.benchmarks.driving import Run
from tests.benchmarks.workload import Order, Traffic

LONG, SHORT = 50, 8  # steps


def measure(bench: Bench) -> dict[str, Any]:
    """Latency of short jobs under each system: four long jobs run, and a short one arrives every 0.25 s."""
    scale = 4 if bench.options.smoke else 1
    orders = [Order(seed, steps=(LONG if seed < 4 else SHORT) // scale) for seed in range(12)]
    traffic = Traffic(orders, arrivals=[0.0] * 4 + [0.25 / scale * number for number in range(1, 9)])
    runs = {way: bench.peers.run(way, traffic) for way in ("locked", "batched")}
    runs["server"] = bench.served.run(traffic)
    rows = [_row(system, run) for system, run in runs.items()]
    bench.table(f"jobs of {SHORT} steps behind four of {LONG} (p50 s)", rows)
    ratio = rows[-1]["short s"] / rows[0]["short s"]
    bench.hold("short jobs behind long ones: latency over (a)", ratio, at_most={"cpu": 0.35})
    return {"rows": rows}


def _row(system: str, run: Run) -> dict[str, Any]:
    long, short = run.records[:4], run.records[4:]
    names = {"locked": "(a)", "batched": "(b)", "server": "server"}
    return {
        "system": names[system],
        "short s": statistics.median(record.latency for record in short),
        "long s": statistics.median(record.latency for record in long),
    }
