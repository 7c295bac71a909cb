"""The model of a fleet keeps the laws that are known, and the figures it is fed with say where they are from."""

import json
import math
import random
from dataclasses import replace

import pytest

from tests.benchmarks.fleet import POLICIES, Fleet, Speeds, bursty, client, curve, poisson
from tests.benchmarks.simulate import INPUTS, Plan, check, control, inputs, simulate, speeds_of

DEMO = Speeds(curve({2: 0.02, 32: 0.1}), picture=0.008)


def run(fleet: Fleet, source: object, seconds: float) -> dict[str, float]:
    fleet.env.process(source)
    fleet.env.run(until=seconds)
    return fleet.outcome()


def at_once(fleet: Fleet, clients: int, pictures: int = 1, steps: int = 20) -> float:
    """Seconds until clients have their pictures."""
    every = [fleet.env.process(client(fleet, steps, pictures)) for _ in range(clients)]
    fleet.env.run(until=fleet.env.all_of(every))
    return float(fleet.env.now)


def test_one_job_at_a_time_is_the_queue_of_the_textbook() -> None:
    """M/M/1: Poisson arrivals, one exponential tick a job, batches of one."""
    rng, served, asked = random.Random(1), 10.0, 5.0
    fleet = Fleet(Speeds(lambda rows: rng.expovariate(served)), 1, limit=2)
    found = run(fleet, poisson(fleet, asked, steps=1), 3000)
    assert found["mean s"] == pytest.approx(1 / (served - asked), rel=0.03)
    assert found["p99 s"] == pytest.approx(math.log(100) / (served - asked), rel=0.06)
    assert found["stepping"] == pytest.approx(asked / served, rel=0.03)


@pytest.mark.parametrize("policy", POLICIES)
def test_jobs_in_the_fleet_are_their_rate_times_their_seconds(policy: str) -> None:
    """Little's law, beside loads of models."""
    fleet = Fleet(replace(DEMO, load=0.3), 6, POLICIES[policy], models=6, budget=2, warm=20)
    found = run(fleet, poisson(fleet, 12.0), 120)
    assert found["images/s"] * fleet.size == pytest.approx(12.0, rel=0.05)
    assert found["jobs"] == pytest.approx(12.0 * found["mean s"], rel=0.05)


@pytest.mark.parametrize("clients", [1, 4, 16, 64])
def test_a_device_with_one_model_makes_what_its_curve_says(clients: int) -> None:
    fleet = Fleet(DEMO, 1)
    images_per_s = 4 * clients / at_once(fleet, clients, pictures=4)
    assert images_per_s == pytest.approx(DEMO.images_per_s(min(32, 2 * clients), 20), rel=0.03)


def test_a_device_with_work_is_never_idle() -> None:
    fleet = Fleet(DEMO, 2, models=3, budget=3)
    at_once(fleet, 40)
    assert max(device.busy for device in fleet.devices) == pytest.approx(fleet.env.now)
    assert all(device.loads <= 3 for device in fleet.devices)


def test_a_model_that_waits_for_room_is_not_starved() -> None:
    """Its loading begins when the jobs of the other model that were there before it have ended."""
    fleet = Fleet(replace(DEMO, load=1.0), 1, models=2)
    for _ in range(16):
        fleet.env.process(client(fleet, 20))
    fleet.env.run(until=60)
    assert fleet.devices[0].loads > 10
    assert max(fleet.latencies) < 2 * (1.0 + 1 / DEMO.images_per_s(32, 20) * 16 * 2)


def test_models_are_loaded_seldom_where_jobs_go_to_them() -> None:
    loads = {}
    for name, policy in POLICIES.items():
        fleet = Fleet(replace(DEMO, load=0.5), 6, policy, models=20, budget=5, warm=10)
        loads[name] = run(fleet, poisson(fleet, 9.0), 60)["loads/h"]
    assert 3 * loads["affine with spill"] < loads["random"]
    assert loads["affine"] <= loads["affine with spill"]


def test_a_model_spills_where_jobs_would_wait() -> None:
    """More than a third of the jobs are for one model, and more than the device makes that has it."""
    waits = {}
    for name in ("affine", "affine with spill"):
        fleet = Fleet(replace(DEMO, load=0.5), 8, POLICIES[name], models=8, budget=2, warm=15)
        waits[name] = run(fleet, poisson(fleet, 30.0), 40)["p99 s"]
    assert 2 * waits["affine with spill"] < waits["affine"]


def test_bursts_have_the_rate_of_the_mean() -> None:
    fleet = Fleet(replace(DEMO, tick=lambda rows: 1e-4, picture=0.0), 1)
    assert run(fleet, bursty(fleet, 3.0, steps=1), 2000)["images/s"] == pytest.approx(3.0, rel=0.05)


def test_a_full_queue_refuses() -> None:
    fleet = Fleet(replace(DEMO, load=100.0), 1, models=2, queue=10)
    found = run(fleet, poisson(fleet, 5.0), 50)
    assert fleet.calls.sum() == 10
    assert found["refused"] > 0.8


def test_each_figure_says_where_it_is_from() -> None:
    figures = json.loads(INPUTS.read_text())
    for part in (*figures["devices"].values(), figures["cluster"]):
        for name in inputs(part):
            assert part[name]["kind"] in {"measured", "assumed"}
            assert part[name]["by"]
    for device in figures["devices"].values():
        speeds = speeds_of(inputs(device))
        assert speeds.images_per_s(32, 20) > speeds.images_per_s(2, 20)
        first, *_, last = control(inputs(device), 1.0, inputs(figures["cluster"]))
        assert last["edge CPUs, events"] > 500 * first["edge CPUs, events"]


def test_a_plan_is_simulated() -> None:
    found = simulate(Plan(size=4, load=0.02, models=4))
    assert found["size"] == 4
    assert found["images/s"] == pytest.approx(0.02 * 7.38, rel=0.1)


def test_the_model_is_compared_with_a_real_run() -> None:
    steps = {"tick_s": {"2": 0.02, "32": 0.13}, "picture_s": 0.01, "job_s": 0.0, "beside": 1.6}
    rows = [{"system": name, "images/s": 5.0} for name in ("single server", "1 replica", "2 replicas")]
    workload = {"clients": 64, "seconds": 400.0, "cores": 2}
    cluster = {"ms added a job": 3.0, "ms added an event": 0.5, "shared_s": 0.0, **workload, "rows": rows}
    single, one, two = check({"steps": steps, "cluster": cluster})
    assert single["model"] == pytest.approx(speeds_of(steps).images_per_s(32, 20), rel=0.01)
    assert 0.9 * single["model"] < one["model"] < single["model"]
    assert one["model"] < two["model"] < 2 * one["model"]
    assert two["off"] == pytest.approx(two["model"] / 5.0 - 1)
    _, same, less = check({"steps": steps, "cluster": {**cluster, "shared_s": 0.06}})
    assert same["model"] == one["model"]  # the other core does it
    seconds = [2 / each["model"] for each in (two, less)]  # of a device for a picture
    assert seconds[1] - seconds[0] == pytest.approx(0.06, rel=0.02)
    _, _, many = check({"steps": steps, "cluster": {**cluster, "shared_s": 0.06, "cores": 16}})
    assert many["model"] == two["model"]
