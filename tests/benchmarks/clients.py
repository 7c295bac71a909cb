"""Closed-loop load: 1, 4, 16 and 64 clients, each with one request at a time."""

from typing import Any

from tests.benchmarks.bench import Bench
from tests.benchmarks.driving import Turns
from tests.benchmarks.workload import Traffic, mixed, uniform

NOTE = """\
(a) diffusers' pipeline, one request at a time. (b) the same, where what waits and is alike is made as one static batch.
(c) static batches of 16 with one scheduler for as many row-evaluations and decodes. Text encoding counts for all; PNG
and transport for the server alone, whose clients share its cores besides. All have as many threads: those that are best
for (a). ratio: images/s over those of the first line of the same traffic, the median of the rounds."""


def measure(bench: Bench) -> dict[str, Any]:
    """Throughput and latency, against the peers: first what matters most."""
    bench.start()
    if bench.limit:
        bench.note("the limit of the card", bench.limit)
    rows = [*_mixed(bench), *_one(bench), *_alike(bench), *_few_and_many(bench)]
    if bench.limit:
        rows = [{**row, "of the limit": row["images/s"] / bench.limit["limit, images/s"]} for row in rows]
        bench.table("the limit of the card: pictures of 20 steps with guidance", [bench.limit])
    bench.table("clients, each asking for one picture after another", rows, NOTE)
    return {"rows": rows, "limit": bench.limit}


def _mixed(bench: Bench) -> list[dict[str, Any]]:
    runs = bench.turns(
        "16 clients, mixed",
        {
            "server": lambda: bench.served.run(bench.traffic(mixed, 128, 16)),
            "(c)": lambda: bench.peers.run("ideal", bench.orders(mixed, 128), bench.options.seconds),
            "server, latent-rgb previews": lambda: bench.served.run(bench.traffic(mixed, 128, 16), "latent-rgb"),
            "(a)": lambda: bench.peers.run("locked", bench.traffic(mixed, 24, 16)),
            "(b)": lambda: bench.peers.run("batched", bench.traffic(mixed, 24, 16)),
        },
        rounds=5,
    )
    bench.hold("16 clients, mixed: images/s over (c)", runs.over("server", "(c)"), at_least={"cpu": 0.92, "cuda": 0.9})
    bench.hold("16 clients, mixed: images/s over (a)", runs.over("server", "(a)"), at_least={"cpu": 3.3, "sd15": 4.0})
    bench.hold(
        "16 clients, mixed: images/s",
        runs["server"].images_per_s,
        at_least={"sdxl": 1.0, "sdxl compiled": 1.4, "sdxl compiled float8-dynamic": 1.8},
    )
    bench.hold(
        "16 clients, mixed, latent-rgb previews: images/s over without",
        runs.over("server, latent-rgb previews", "server"),
        at_least={"cuda": 0.99},
    )
    return _rows(runs)


def _one(bench: Bench) -> list[dict[str, Any]]:
    def traffic() -> Traffic:
        return bench.traffic(uniform, 5)

    runs = bench.turns(
        "1 client",
        {
            "(a)": lambda: bench.peers.run("locked", traffic()),
            "server, latent-rgb previews": lambda: bench.served.run(traffic(), "latent-rgb"),
            "server": lambda: bench.served.run(traffic()),
            "server, full-vae previews": lambda: bench.served.run(traffic(), "full-vae"),
        },
        rounds=5,
    )
    bench.hold(
        "1 client with latent-rgb previews at every step: images/s over (a) without",
        runs.over("server, latent-rgb previews", "(a)"),
        at_least={"cpu": 0.97, "cuda": 1.0},
    )
    return _rows(runs)


def _alike(bench: Bench) -> list[dict[str, Any]]:
    def traffic() -> Traffic:
        return bench.traffic(uniform, 48, clients=16)

    ways = {"(b)": lambda: bench.peers.run("batched", traffic()), "server": lambda: bench.served.run(traffic())}
    return _rows(bench.turns("16 clients, alike", ways, rounds=3))


def _few_and_many(bench: Bench) -> list[dict[str, Any]]:
    def traffic(count: int, clients: int) -> Traffic:
        return bench.traffic(mixed, count, clients)

    few = bench.turns("4 clients, mixed", {"server": lambda: bench.served.run(traffic(24, 4))})
    many = bench.turns(
        "64 clients, mixed",
        {
            "(b)": lambda: bench.peers.run("batched", traffic(64, 64)),
            "server": lambda: bench.served.run(traffic(128, 64)),
        },
    )
    return [*_rows(few), *_rows(many)]


def _rows(turns: Turns) -> list[dict[str, Any]]:
    """One line each, with throughput relative to the first peer's."""
    first = min(turns, key=lambda system: (not system.startswith("("), system))
    return [
        {"traffic": turns.traffic, **turns[name].row(name), "ratio": turns.over(name, first)} for name in sorted(turns)
    ]
