"""Profile: engine time by stage of a tick, and CPU time by thread with 64 preview streams."""

from collections.abc import Mapping
from typing import Any

from tests.benchmarks.bench import Bench
from tests.benchmarks.driving import Run
from tests.benchmarks.served import Served
from tests.benchmarks.workload import Traffic, mixed, uniform

IDLE = "waiting for work"


def measure(bench: Bench) -> dict[str, Any]:
    """Shares of the engine's time by stage, with 16 clients of mixed settings; shares of CPU time by thread, with 64
    streams; both with a latent-rgb preview at every step, on an instrumented server."""
    served = bench.serve(clocks=True)
    try:
        served.run(Traffic(bench.orders(uniform, 32), 32), "latent-rgb")
        stages, _, run = _clocked(served, Traffic(bench.orders(mixed, 64), 16))
        _, threads, many = _clocked(served, Traffic(bench.orders(uniform, 128), 64))
    finally:
        served.stop()
    bench.table(
        f"where the engine's time goes, % (16 clients, mixed, {run.images_per_s:.2f} images/s)", [_percent(stages)]
    )
    bench.table(
        f"the server's CPU time by thread, % (64 streams, {many.images_per_s:.2f} images/s)", [_percent(threads)]
    )
    outside = sum(threads.get(kind, 0.0) for kind in ("transport", "encoding", "requests"))
    bench.hold("64 streams with previews: CPU of transport and encoding", outside, at_most={"cpu": 0.1})
    stepping = stages["guidance and scheduler"]
    bench.hold("guidance and scheduler, share of a tick at 16 clients", stepping, at_most={"cpu": 0.02, "cuda": 0.05})
    return {"stages": stages, "threads": threads, "previews": many.row("server")["previews"]}


def _clocked(served: Served, traffic: Traffic) -> tuple[dict[str, float], dict[str, float], Run]:
    """Shares of each stage and of each thread during this traffic."""
    before = served.clocks()
    run = served.run(traffic, "latent-rgb")
    after = served.clocks()
    stages, threads = (_shares(before[kind], after[kind]) for kind in ("stages", "cpu"))
    return stages, threads, run


def _shares(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    spent = {name: after[name] - before.get(name, 0.0) for name in after if name != IDLE}
    return {name: seconds / sum(spent.values()) for name, seconds in spent.items()}


def _percent(shares: Mapping[str, float]) -> dict[str, float]:
    return {name: 100 * share for name, share in sorted(shares.items(), key=lambda item: -item[1])}
