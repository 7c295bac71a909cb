"""How many devices a fleet takes: the model of `fleet.py`, fed with the figures of `results/fleet.json`.

Prints what four ways to route make of one fleet, and what edges and controller have to do for 1 to 1,000 devices. With
--picture sweeps size and load, and draws. With --check compares the model with a real cluster on this machine.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks import chart
from tests.benchmarks.bench import show
from tests.benchmarks.fleet import CYCLE, POLICIES, STEPS, Fleet, Speeds, bursty, client, curve, least_loaded, poisson

INPUTS = Path(__file__).parent / "results" / "fleet.json"
SIZES = (1, 3, 10, 30, 100, 300, 1000)
LOADS = (0.1, 0.2, 0.4, 0.6, 0.8)
ARRIVALS = {"Poisson": poisson, "bursts": bursty}
MEAN_STEPS = sum(STEPS) / len(STEPS)
NIC = 1.25e9  # bytes a second: 10 Gbit/s
CHECK_STEPS = 20  # of the benchmark's part `cluster`
WITHIN = 0.15


@dataclass(frozen=True)
class Plan:
    """A fleet to simulate. `load` is the share of what a device does with full batches of one model."""

    device: str = "cpu-demo"
    size: int = 100
    load: float = 0.4
    models: int = 100
    budget: int = 4
    policy: str = "affine with spill"
    arrivals: str = "Poisson"
    seconds: float = 12 * CYCLE  # to simulate, the first third of which is for warming up


def speeds_of(figures: Mapping[str, Any]) -> Speeds:
    """Of a device in fleet.json, or as the benchmark's part `steps` measures them."""
    tick = curve({float(rows): seconds for rows, seconds in figures["tick_s"].items()})
    return Speeds(tick, figures["picture_s"], figures["job_s"], figures.get("load_s", 0.0), figures.get("beside", 1.0))


def inputs(part: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a part of fleet.json."""
    return {name: each["value"] for name, each in part.items() if name != "what"}


def simulate(plan: Plan) -> dict[str, Any]:
    """The plan's figures and those of a run of it."""
    speeds = speeds_of(inputs(json.loads(INPUTS.read_text())["devices"][plan.device]))
    fleet = Fleet(speeds, plan.size, POLICIES[plan.policy], plan.models, plan.budget, warm=plan.seconds / 3)
    rate = plan.load * plan.size * speeds.images_per_s(fleet.limit, MEAN_STEPS)
    fleet.env.process(ARRIVALS[plan.arrivals](fleet, rate))
    fleet.env.run(until=plan.seconds)
    return {**vars(plan), **fleet.outcome()}


def routing(plan: Plan) -> list[dict[str, Any]]:
    """The ways to route, with both kinds of arrivals."""
    plans = [replace(plan, policy=policy, arrivals=arrivals) for policy in POLICIES for arrivals in ARRIVALS]
    columns = ("policy", "arrivals", "images/s", "p50 s", "p99 s", "loads/h", "stepping", "loading", "rows", "refused")
    return [{column: found[column] for column in columns} for found in _all(plans)]


def _all(plans: list[Plan]) -> list[dict[str, Any]]:
    with ProcessPoolExecutor() as pool:
        return list(pool.map(simulate, plans))


def control(device: Mapping[str, Any], images_per_s: float, cluster: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What fleets need beside devices that make so many pictures a second each, with a preview of each step."""
    size_of, events = device["bytes"], 2 * MEAN_STEPS + 3
    sent = MEAN_STEPS * (size_of["step"] + size_of["preview"]) + size_of["image"]
    counts, seconds = zip(*((int(count), each) for count, each in cluster["route_s"].items()), strict=True)
    rows = []
    for size in SIZES:
        made = size * images_per_s
        route = float(np.interp(size, counts, seconds))
        rows.append(
            {
                "devices": size,
                "images/s": made,
                "events/s": made * events,
                "edge CPUs, events": made * events * cluster["event_s"],
                "edge CPUs, routing": made * route,
                "10 Gbit/s links": made * sent / NIC,
                "controller CPUs": size * cluster["controller_s"],
                "CPU s a list of models": size * cluster["broadcast_s"],
            }
        )
    return rows


def panels(plan: Plan) -> list[chart.Panel]:
    """By fleet size and by load."""
    policies = list(POLICIES)
    sizes = _all([replace(plan, policy=policy, size=size) for policy in policies for size in SIZES])
    loads = _all([replace(plan, policy=p, load=load, arrivals=a) for p in policies for a in ARRIVALS for load in LOADS])

    def by_size(column: str) -> list[chart.Line]:
        return [chart.Line(p, [(r["size"], r[column]) for r in sizes if r["policy"] == p]) for p in policies]

    by_load = [
        chart.Line(
            policy,
            [(100 * r["load"], r["p99 s"]) for r in loads if (r["policy"], r["arrivals"]) == (policy, arrivals)],
            dashed=arrivals == "bursts",
        )
        for policy in policies
        for arrivals in ARRIVALS
    ]
    at, devices = f"at {plan.load:.0%} load", "devices"
    asked = f"load in % of full batches, {plan.size} devices (dashed: in bursts)"
    return [
        chart.Panel(f"throughput {at}", devices, "images a second and device", by_size("images/s"), wide=True),
        chart.Panel(f"latency {at}", devices, "p99, seconds", by_size("p99 s"), logarithmic=True, wide=True),
        chart.Panel(f"models {at}", devices, "loads an hour and device", by_size("loads/h"), wide=True),
        chart.Panel("latency by load", asked, "p99, seconds", by_load, logarithmic=True),
    ]


def check(recorded: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A real cluster's images/s beside those of the model, which has the ticks of servers without a cluster, what job
    and event of one client take longer through the edge, and the CPU seconds of all else that one replica brings."""
    cluster = recorded["cluster"]
    single = speeds_of(recorded["steps"])
    added = {"job": single.job + cluster["ms added a job"] / 1000, "event": cluster["ms added an event"] / 1000}
    edge = replace(single, **added, shared=cluster["shared_s"] / CHECK_STEPS)
    rows = []
    for row in cluster["rows"]:
        size = 2 if row["system"] == "2 replicas" else 1
        speeds = single if row["system"] == "single server" else edge
        fleet = Fleet(speeds, size, least_loaded, warm=cluster["seconds"] / 4, cores=cluster["cores"])
        for _ in range(cluster["clients"]):
            fleet.env.process(client(fleet, CHECK_STEPS))
        fleet.env.run(until=cluster["seconds"])
        real, model = row["images/s"], size * fleet.outcome()["steps/s"] / CHECK_STEPS
        rows.append({"system": row["system"], "real": real, "model": model, "off": model / real - 1})
    return rows


def _recorded(file: str) -> dict[str, Any]:
    if file:
        recorded = json.loads(Path(file).read_text())
        if missing := {"steps", "cluster"} - recorded.keys():
            sys.exit(f"{file} lacks the part {' and '.join(sorted(missing))}")
        if "seconds" not in recorded["cluster"]:
            sys.exit(f"{file} counted a number of pictures, with the end of the run: measure the part cluster again")
        return recorded  # type: ignore[no-any-return]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.benchmarks", "--only", "steps,cluster", "--out", folder]
        subprocess.run(command, check=True)
        return json.loads((Path(folder) / "cpu.json").read_text())  # type: ignore[no-any-return]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    figures = json.loads(INPUTS.read_text())
    parser.add_argument("--device", choices=figures["devices"], default=Plan.device)
    parser.add_argument("--size", type=int, default=Plan.size, help="devices")
    parser.add_argument("--load", type=float, default=Plan.load, help="share of what devices do with full batches")
    parser.add_argument("--models", type=int, default=Plan.models, help="models; the k-th is asked for as 1/k")
    parser.add_argument("--budget", type=int, default=Plan.budget, help="models in a device's memory")
    parser.add_argument("--seconds", type=float, default=Plan.seconds, help="to simulate, a third for warming up")
    parser.add_argument("--picture", type=Path, help="sweep size and load, and draw (minutes)")
    parser.add_argument(
        "--check",
        nargs="?",
        const="",
        metavar="FILE",
        help="compare with a real cluster: the results of `python -m tests.benchmarks --only steps,cluster`, or a run",
    )
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if options.check is not None:
        rows = check(_recorded(options.check))
        show("images/s of replicas on this machine", rows)
        return int(any(abs(row["off"]) > WITHIN for row in rows if row["system"] == "2 replicas"))
    names = ("device", "size", "load", "models", "budget", "seconds")
    plan = Plan(**{name: getattr(options, name) for name in names})
    if options.picture:
        chart.sheet(options.picture, panels(plan))
        return 0
    rows = routing(plan)
    show(f"{plan.size} devices, {plan.models} models, {plan.budget} in memory, {plan.load:.0%} load; by device", rows)
    made = next(row["images/s"] for row in rows if row["policy"] == plan.policy)
    figures = json.loads(INPUTS.read_text())
    show(
        "what such fleets need beside devices",
        control(inputs(figures["devices"][plan.device]), made, inputs(figures["cluster"])),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
