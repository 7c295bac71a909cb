"""Startup time: from `darkroom serve` to the first picture, and of `darkroom --help`."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.bench import Bench
from tests.benchmarks.workload import Order, Traffic

ORDER = Order(0)
SCRIPT = f"""\
import sys, torch
from diffusers import DiffusionPipeline
model, device, dtype = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(model, dtype=getattr(torch, dtype)).to(device)
pipe({ORDER.prompt!r}, num_inference_steps={ORDER.steps}, guidance_scale={ORDER.guidance})
"""


def measure(bench: Bench) -> dict[str, Any]:
    """Median seconds from the start of a process; weights come from the page cache."""
    dtype = str(bench.dtype).removeprefix("torch.")
    ways: dict[str, Callable[[], object]] = {
        "script": lambda: _run(sys.executable, "-c", SCRIPT, str(bench.model), bench.options.device, dtype),
        "serve": lambda: _first_picture(bench),
        "python": lambda: _run(sys.executable, "-c", ""),
        "help": lambda: _run(str(Path(sys.executable).with_name("darkroom")), "--help"),
    }
    turns = 1 if bench.options.smoke else 4  # the first warms the page cache
    taken = [{name: _timed(way) for name, way in ways.items()} for _ in range(turns)]
    seconds = {name: statistics.median(turn[name] for turn in taken[-3:]) for name in ways}
    row = {
        "diffusers' script, first picture s": seconds["script"],
        "darkroom serve, first picture s": seconds["serve"],
        "ratio": seconds["serve"] / seconds["script"],
        "python s": seconds["python"],
        "darkroom --help s": seconds["help"],
    }
    bench.table("start-up", [row], "A picture of 20 Euler steps; the script has its own scheduler, and writes no PNG.")
    bench.hold("darkroom --help, s", seconds["help"], at_most={"cpu": 0.3, "cuda": 0.3})
    return row


def _first_picture(bench: Bench) -> None:
    served = bench.serve()
    try:
        served.run(Traffic([ORDER]))
    finally:
        served.stop()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _timed(way: Callable[[], object]) -> float:
    began = time.perf_counter()
    way()
    return time.perf_counter() - began
