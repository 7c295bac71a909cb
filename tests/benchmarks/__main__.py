"""`make bench`: the server beside diffusers' pipeline behind a lock, on the same weights, in the same run.

Machines are noisy: server and peer take turns, and each figure is a ratio of medians. Writes a table to the terminal
and a JSON file beside this one, in results/.
"""

import argparse
import dataclasses
import json
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.served import Outcome, Served, quiet
from tests.benchmarks.workload import Order, mixed, uniform

RESULTS = Path(__file__).parent / "results"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--model", type=Path, help="a folder; none: the demo model, on CUDA the networks of SD 1.5")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=1000, help="of the memory test; 0 leaves it out")
    parser.add_argument("--out", type=Path, help="the JSON file; none: results/DEVICE.json")
    return parser.parse_args()


def compare(rounds: int, peer: Callable[[], float], server: Callable[[], Outcome]) -> tuple[float, list[Outcome]]:
    """The peer's median seconds, and the server's outcomes, taken in turns."""
    peers, outcomes = [], []
    for _ in range(rounds):
        peers.append(peer())
        outcomes.append(server())
    return statistics.median(peers), outcomes


def row(name: str, images: int, peer: float, outcomes: list[Outcome], bar: float) -> dict[str, Any]:
    ours = statistics.median(o.seconds for o in outcomes)
    return {
        "what": name,
        "peer_images_per_s": images / peer,
        "server_images_per_s": images / ours,
        "ratio": peer / ours,
        "bar": bar,
        "mean_rows": statistics.fmean(r for o in outcomes for r in o.rows),
        "p50_s": statistics.median(s for o in outcomes for s in o.latencies),
        "p99_s": statistics.quantiles([s for o in outcomes for s in o.latencies], n=100)[98],
        "previews_per_image": statistics.fmean(o.previews for o in outcomes) / images,
        "first_preview_steps": statistics.median([s for o in outcomes for s in o.first_previews] or [0.0]),
    }


def measure(served: Served, peer: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    peer.run(uniform(2), 1)  # warm both up
    served.run(mixed(options.clients), options.clients)
    few, many = uniform(10), mixed(4 * options.clients)
    cases: list[tuple[str, list[Order], int, str, float]] = [
        ("1 client, no preview", few, 1, "off", 0.0),
        ("1 client, latent-rgb preview at each step", few, 1, "latent-rgb", 0.9),
        ("1 client, full-vae preview at each step", few, 1, "full-vae", 0.0),
        (f"{options.clients} clients, mixed", many, options.clients, "off", 2.5),
        (f"{options.clients} clients, mixed, latent-rgb previews", many, options.clients, "latent-rgb", 0.0),
    ]
    rows = []
    for name, orders, clients, preview, bar in cases:
        took, outcomes = compare(
            options.rounds,
            lambda orders=orders, clients=clients: peer.run(orders, clients),
            lambda orders=orders, clients=clients, preview=preview: served.run(orders, clients, preview),
        )
        rows.append(row(name, len(orders), took, outcomes, bar))
        print_row(rows[-1])
    return rows


def print_row(row: dict[str, Any]) -> None:
    verdict = "" if not row["bar"] else f"bar {row['bar']:.2f} {'held' if row['ratio'] >= row['bar'] else 'MISSED'}"
    print(
        f"{row['what']:46} peer {row['peer_images_per_s']:6.2f}/s  server {row['server_images_per_s']:6.2f}/s  "
        f"ratio {row['ratio']:5.2f}  rows {row['mean_rows']:4.1f}  p99 {row['p99_s']:5.2f} s  "
        f"first preview {row['first_preview_steps']:4.2f} steps  {verdict}",
        flush=True,
    )


def memory(served: Served, options: argparse.Namespace) -> dict[str, float]:
    """Resident memory of the server, MiB, before and after many requests."""
    mib = 2**20
    orders = [dataclasses.replace(order, steps=4) for order in mixed(options.requests)]
    served.run(orders[:200], options.clients, "latent-rgb")  # until pools and caches are full
    before = served.memory / mib
    served.run(orders, options.clients, "latent-rgb")
    after = served.memory / mib
    print(f"memory: {before:.0f} MiB, and {after:.0f} MiB after {options.requests} more requests")
    return {"before_mib": before, "after_mib": after, "requests": options.requests}


def main() -> None:
    options = arguments()
    quiet()
    import torch

    from darkroom_demo import MODEL_PATH
    from tests.benchmarks.architectures import stable_diffusion_15
    from tests.benchmarks.peers import LockedPipeline
    from tests.benchmarks.returning import returning
    from tests.benchmarks.weights import weights

    cuda = options.device.startswith("cuda")
    large = stable_diffusion_15(Path(".cache/sd15"))
    model = options.model or (large if cuda else MODEL_PATH)
    dtype = torch.float16 if cuda else torch.float32
    peer = LockedPipeline(model, options.device, dtype)
    served = Served(model, options.device, options.dtype)
    try:
        rows = measure(served, peer, options)
        tasks = weights(served, model, dtype)
        growth = memory(served, options) if options.requests else None
    finally:
        served.stop()
    back = returning(large, torch.device(options.device), 5)
    device = torch.cuda.get_device_name() if cuda else f"{platform.processor() or platform.machine()} CPU"
    result = {
        "device": device,
        "torch_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "model": model.name,
        "rows": rows,
        "weights": tasks,
        "memory": growth,
        "returning": back,
    }
    out = options.out or RESULTS / f"{options.device.partition(':')[0]}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written: {out}")


if __name__ == "__main__":
    main()
