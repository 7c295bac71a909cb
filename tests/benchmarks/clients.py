"""Clients that each ask for one picture after another: 1, 4, 16 and 64 of them."""

from typing import Any

from tests.benchmarks.bench import Bench
from tests.benchmarks.driving import Run
from tests.benchmarks.workload import Traffic, mixed, uniform

NOTE = """\
(a) diffusers' pipeline, one request at a time. (b) the same, where what waits and is alike is made as one static batch.
(c) static batches of 16 with one scheduler for as many row-evaluations and decodes. Text encoding counts for all; PNG
and transport for the server alone, whose clients share its cores besides. All have as many threads: those that are best
for (a). ratio: images/s over those of the first line of the same traffic."""


def measure(bench: Bench) -> dict[str, Any]:
    """Images a second and latencies, beside the peers."""
    rows = [*_one(bench), *_alike(bench), *_mixed(bench)]
    if bench.limit:
        rows = [{**row, "of the limit": row["images/s"] / bench.limit["limit, images/s"]} for row in rows]
        bench.table("the limit of the card: pictures of 20 steps with guidance", [bench.limit])
    bench.table("clients, each asking for one picture after another", rows, NOTE)
    return {"rows": rows}


def _one(bench: Bench) -> list[dict[str, Any]]:
    def traffic() -> Traffic:
        return Traffic(bench.orders(uniform, 5))

    runs = bench.turns(
        {
            "(a)": lambda: bench.peers.run("locked", traffic()),
            "server": lambda: bench.served.run(traffic()),
            "server, latent-rgb previews": lambda: bench.served.run(traffic(), "latent-rgb"),
            "server, full-vae previews": lambda: bench.served.run(traffic(), "full-vae"),
        },
        rounds=3,
    )
    ratio = runs["(a)"].seconds / runs["server, latent-rgb previews"].seconds
    bench.hold(
        "1 client with latent-rgb previews at every step: images/s over (a) without", ratio, at_least={"cpu": 0.97}
    )
    return _rows("1 client", runs)


def _alike(bench: Bench) -> list[dict[str, Any]]:
    def traffic() -> Traffic:
        return Traffic(bench.orders(uniform, 48), clients=16)

    ways = {"(b)": lambda: bench.peers.run("batched", traffic()), "server": lambda: bench.served.run(traffic())}
    return _rows("16 clients, alike", bench.turns(ways, rounds=3))


def _mixed(bench: Bench) -> list[dict[str, Any]]:
    def traffic(count: int, clients: int = 16) -> Traffic:
        return Traffic(bench.orders(mixed, count), clients)

    slow = bench.turns(
        {
            "(a)": lambda: bench.peers.run("locked", traffic(40)),
            "(b)": lambda: bench.peers.run("batched", traffic(40)),
        }
    )
    fast = bench.turns(
        {
            "(c)": lambda: bench.peers.run("ideal", bench.orders(mixed, 128)),
            "server": lambda: bench.served.run(traffic(128)),
            "server, latent-rgb previews": lambda: bench.served.run(traffic(128), "latent-rgb"),
        },
        rounds=3,
    )
    other = {
        "4 clients, mixed": bench.turns({"server": lambda: bench.served.run(traffic(24, clients=4))}),
        "64 clients, mixed": bench.turns(
            {
                "(b)": lambda: bench.peers.run("batched", traffic(64, clients=64)),
                "server": lambda: bench.served.run(traffic(128, clients=64)),
            }
        ),
    }
    ours, preview = fast["server"].images_per_s, fast["server, latent-rgb previews"].images_per_s
    bench.hold(
        "16 clients, mixed: images/s over (c)", ours / fast["(c)"].images_per_s, at_least={"cpu": 0.92, "cuda": 0.9}
    )
    bench.hold(
        "16 clients, mixed: images/s over (a)", ours / slow["(a)"].images_per_s, at_least={"cpu": 3.3, "cuda": 2.5}
    )
    bench.hold("16 clients, mixed: images/s", ours, at_least={"sdxl": 2.0})
    bench.hold(
        "16 clients, mixed, latent-rgb previews: images/s over without",
        preview / ours,
        at_least={"cuda": 0.99, "sdxl": 0.99},
    )
    middle = _rows("16 clients, mixed", {**slow, **fast})
    return [
        *_rows("4 clients, mixed", other["4 clients, mixed"]),
        *middle,
        *_rows("64 clients, mixed", other["64 clients, mixed"]),
    ]


def _rows(what: str, runs: dict[str, Run]) -> list[dict[str, Any]]:
    """A line for each, with its images a second relative to the first peer's."""
    first = next(iter(runs.values())).images_per_s
    return [{"traffic": what, **run.row(name), "ratio": run.images_per_s / first} for name, run in runs.items()]
