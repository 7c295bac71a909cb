"""The benchmark measures what is there. That it runs is seen by `make bench BENCH=--smoke`, which takes minutes."""

import argparse
import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import results
from tests.benchmarks.bench import Bench
from tests.benchmarks.clocks import STAGES, find
from tests.benchmarks.driving import Record, Run, drive, rate
from tests.benchmarks.workload import Order, Traffic


@pytest.mark.parametrize("target", [target for targets in STAGES.values() for target in targets])
def test_stages_are_functions_of_the_server(target: str) -> None:
    owner, name = find(target)
    assert callable(getattr(owner, name))


def test_the_rate_of_a_window_is_that_between_batches() -> None:
    """Of batches of four each second, whenever the window begins and ends."""
    shares = [(second + millisecond / 1000, 0.25) for second in range(10) for millisecond in range(4)]
    for warm in (0.0, 1.5, 5.0):
        assert rate([*shares], 0.0, warm, []).images_per_s == pytest.approx(1.0, rel=1e-3)
    assert rate(shares[-4:], 5.0, 1.0, []).images_per_s == pytest.approx(0.25, rel=1e-3)


def test_in_a_window_clients_ask_on_and_on_with_other_seeds() -> None:
    seeds: list[int] = []

    async def make(order: Order, record: Record) -> None:
        seeds.append(order.seed)
        await asyncio.sleep(0)

    traffic = Traffic([Order(3), Order(5)], clients=3, seconds=0.05)
    run = asyncio.run(drive(make, traffic))
    assert len(set(seeds)) == len(seeds) > 4
    assert seeds[:3] == [3, 5, 9]
    assert run.images_per_s > 0
    assert all(record.latency for record in run.records)


def test_who_fails_in_a_window_ends_it() -> None:
    async def make(order: Order, record: Record) -> None:
        raise ValueError(order.seed)

    with pytest.raises(ValueError, match="3"):
        asyncio.run(drive(make, Traffic([Order(3)], seconds=60)))


def bench(**options: Any) -> Bench:
    plain = {
        "device": "cpu",
        "model": None,
        "compile": False,
        "quantize": None,
        "smoke": True,
        "rounds": 1,
        "seconds": 0,
    }
    return Bench(argparse.Namespace(**plain | options))


def test_a_run_that_is_cut_off_leaves_what_it_measured(tmp_path: Path) -> None:
    def cut_off() -> Run:
        raise KeyboardInterrupt

    running, file = bench(), tmp_path / "results.json"
    running.keep = lambda: results.write(file, running.parts, "of this run")
    results.write(file, {"figure": 1}, "of another")
    ways = {"server": lambda: Run(2.0, [Record(Order(0), latency=2.0)]), "(a)": cut_off}
    with pytest.raises(KeyboardInterrupt):
        running.measure("clients", lambda running: running.turns("1 client", ways))
    found = results.read(file)
    assert found["of another"] == {"figure": 1}
    assert found["of this run"]["clients"]["1 client: server"][0]["images/s"] == 0.5


def test_a_bar_is_that_of_the_most_exact_kind() -> None:
    bars = {"cpu": 1.0, "cuda": 2.0, "sdxl": 3.0, "sdxl compiled": 4.0}
    for options, expected in (
        ({}, ["≥ 1"]),
        ({"compile": True}, []),  # compiled code on a CPU has none
        ({"device": "cuda"}, ["≥ 2"]),
        ({"device": "cuda", "model": "sdxl"}, ["≥ 3"]),
        ({"device": "cuda", "model": "sdxl", "compile": True}, ["≥ 4"]),
    ):
        held = bench(**options)
        held.hold("images/s", 2.5, at_least=bars)
        assert [bar["bar"] for bar in held.bars] == expected
