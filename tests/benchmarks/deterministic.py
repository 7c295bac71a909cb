"""What `deterministic` costs: the same traffic with and without it, on one server."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from tests.benchmarks.bench import Bench
from tests.benchmarks.workload import Order, Traffic, mixed, uniform


def measure(bench: Bench) -> dict[str, Any]:
    """Images/s of 16 mixed clients and of one, ordinary and deterministic; of 8 ordinary clients beside 8 others."""

    def traffic(kind: Callable[[int], Sequence[Order]], count: int, clients: int, share: float) -> Traffic:
        orders = bench.orders(kind, count)
        marked = [
            dataclasses.replace(order, deterministic=(number % clients) < share * clients)
            for number, order in enumerate(orders)
        ]
        return Traffic(marked, clients)

    def ways(kind: Callable[[int], Sequence[Order]], count: int, clients: int) -> dict[str, Any]:
        shares = {"ordinary": 0.0, "deterministic": 1.0} | ({"half of each": 0.5} if clients > 1 else {})
        return {
            name: lambda share=share: bench.served.run(traffic(kind, count, clients, share))
            for name, share in shares.items()
        }

    found: dict[str, Any] = {}
    rows = []
    for runs, bar in (
        (bench.turns("16 clients, mixed", ways(mixed, 64, 16), rounds=3), {"cpu": 0.9, "cuda": 0.85}),
        (bench.turns("1 client", ways(uniform, 5, 1), rounds=5), {"cpu": 0.6}),
    ):
        what = runs.traffic
        found[what] = runs.over("deterministic", "ordinary")
        bench.hold(f"{what}: images/s of deterministic over ordinary", found[what], at_least=bar)
        rows += [{"traffic": what, **runs[name].row(name), "ratio": runs.over(name, "ordinary")} for name in runs]
    bench.table("deterministic jobs", rows)
    return {"rows": rows}
