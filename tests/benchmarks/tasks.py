"""All tasks at once: text to image, image to image, inpainting, a ControlNet, LoRAs."""

from typing import Any

from tests.benchmarks.bench import Bench
from tests.benchmarks.workload import Traffic, all_tasks


def measure(bench: Bench) -> dict[str, Any]:
    """The server against one pipeline per task behind one lock; skipped for models without ControlNet and LoRAs."""
    if not bench.demo:
        return {}
    warm = Traffic(all_tasks(7), clients=7)
    bench.peers.run("locked", warm)
    bench.served.run(warm)
    runs = bench.turns(
        "all tasks",
        {
            "(a)": lambda: bench.peers.run("locked", Traffic(bench.orders(all_tasks, 21), 16)),
            "server": lambda: bench.served.run(Traffic(bench.orders(all_tasks, 63), 16)),
        },
        rounds=3,
    )
    rows = [{**runs[system].row(system), "over (a)": runs.over(system, "(a)")} for system in runs]
    bench.table("16 clients: text to image, image to image, inpainting, ControlNet, LoRAs, mixed settings", rows)
    return {"rows": rows}
