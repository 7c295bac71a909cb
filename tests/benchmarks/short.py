"""Head-of-line blocking: short jobs behind long ones, and small pictures beside a large one."""

import statistics
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.benchmarks.bench import Bench
from tests.benchmarks.driving import Run
from tests.benchmarks.served import Served
from tests.benchmarks.workload import Order, Traffic

LONG, SHORT = 50, 8  # steps
LARGE = 512  # pixels, a side


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
    return {"rows": rows, **(_beside_large(bench) if bench.demo else {})}


def _beside_large(bench: Bench) -> dict[str, Any]:
    """Latency of small pictures, of which one arrives each second, alone and beside one of 64 times their pixels, which
    is the same client's or another's."""
    options = {"max_edge": LARGE, "max_pixels": LARGE * LARGE}
    served = Served(None, bench.options.device, bench.options.dtype, options=options)
    few = 4 if bench.options.smoke else 12
    small = [Order(seed, steps=SHORT) for seed in range(few)]
    arrivals = [1.0 * number for number in range(1, few + 1)]
    large = Order(few, steps=2 if bench.options.smoke else 20, edge=LARGE)
    beside = f"beside one of {LARGE} px"
    try:
        served.run(Traffic(small[:1]))
        runs = {
            "alone": served.run(Traffic(small, arrivals=arrivals)).records,
            beside: served.run(Traffic([*small, large], arrivals=[*arrivals, 0.0])).records,
        }
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(served.run, Traffic([large]))
            runs[f"{beside} of another client"] = served.run(Traffic(small, arrivals=arrivals)).records
            runs[f"{beside} of another client"] += other.result().records
    finally:
        served.stop()
    rows = []
    for way, records in runs.items():
        latencies = [record.latency for record in records if record.order.edge is None]
        others = [record.latency for record in records if record.order.edge]
        row = {"p50 s": statistics.median(latencies), "longest s": max(latencies)}
        rows.append({"small pictures": way, **row, "the large one s": others[0] if others else None})
    bench.table(f"small pictures of {SHORT} steps, one a second", rows)
    return {"beside large": rows}


def _row(system: str, run: Run) -> dict[str, Any]:
    long, short = run.records[:4], run.records[4:]
    names = {"locked": "(a)", "batched": "(b)", "server": "server"}
    return {
        "system": names[system],
        "short s": statistics.median(record.latency for record in short),
        "long s": statistics.median(record.latency for record in long),
    }
