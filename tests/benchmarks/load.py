"""Open-loop load: Poisson arrivals at 50 to 120 % of the server's capacity."""

from collections.abc import Callable, Sequence
from typing import Any

from tests.benchmarks.bench import Bench
from tests.benchmarks.workload import Order, Traffic, mixed, poisson, popular

LOADS = (0.5, 0.8, 1.0, 1.2)
COUNT = 48  # requests of each run
Kind = Callable[[int], Sequence[Order]]


def measure(bench: Bench) -> dict[str, Any]:
    """Latency at each load, of the server with previews and of request-level batching (b) without. With mixed settings
    (b) has so little throughput that it is measured below the server's capacity only."""
    rows = [*_kind(bench, "popular", popular, LOADS), *_kind(bench, "mixed", mixed, LOADS[:2])]
    note = f"{COUNT} requests each (with --seconds at most), all from one seed; p99 is near the slowest. "
    note += "Previews: latent-rgb, at every step."
    bench.table("Poisson arrivals, in shares of the server's capacity", rows, note)
    return {"rows": rows}


def _kind(bench: Bench, name: str, kind: Kind, peer_loads: Sequence[float]) -> list[dict[str, Any]]:
    capacity = bench.served.run(bench.traffic(kind, 64, clients=32), "latent-rgb").images_per_s
    rows = []
    for load in LOADS:
        within = round(load * capacity * bench.options.seconds)
        orders = bench.orders(kind, max(8, min(COUNT, within)) if bench.options.seconds else COUNT)
        traffic = Traffic(orders, arrivals=poisson(len(orders), load * capacity))
        runs = {"server": bench.served.run(traffic, "latent-rgb")}
        if load in peer_loads:
            runs["(b)"] = bench.peers.run("batched", traffic)
        if load < 1:
            ratio = runs["server"].latency(99) / runs["(b)"].latency(99)
            bench.hold(
                f"p99 at {load:.0%} of capacity, {name} settings: over (b)", ratio, at_most={"cpu": 1.0, "cuda": 1.0}
            )
        common = {"settings": name, "load": f"{load:.0%}", "asked/s": load * capacity}
        rows += [{**common, **run.row(system)} for system, run in runs.items()]
    return rows
