"""Speedup and error of approximations."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from darkroom_client import Client, PreviewOptions
from tests.benchmarks.bench import Bench
from tests.benchmarks.workload import Order, uniform

ASKED: dict[str, dict[str, Any]] = {
    "exact": {},
    "guidance_end 0.8": {"guidance_end": 0.8},
    "guidance_end 0.5": {"guidance_end": 0.5},
    "cache_interval 2": {"cache_interval": 2},
    "cache_interval 3": {"cache_interval": 3},
    "cache_interval 5": {"cache_interval": 5},
    "cache_interval 3, guidance_end 0.5": {"cache_interval": 3, "guidance_end": 0.5},
}


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Per approximation, sequentially: pictures/s, and the error against exact pictures in levels of 255, mean absolute
    and RMS."""
    pictures, rows, orders = {}, [], bench.orders(uniform, 16)
    _made(bench, orders, {})  # warm-up: starts the server, builds the scheduler's table
    for name, asked in ASKED.items():
        began = time.perf_counter()
        pictures[name] = _made(bench, orders, asked)
        rate = len(pictures[name]) / (time.perf_counter() - began)
        difference = pictures[name] - pictures["exact"]
        rows.append(
            {
                "asked": name,
                "images/s": rate,
                "over exact": rate / rows[0]["images/s"] if rows else 1.0,
                "mean difference": float(np.abs(difference).mean()),
                "root mean square": float(np.sqrt((difference**2).mean())),
            }
        )
    bench.table("approximations: 20 Euler steps, one client", rows)
    return rows


def _made(bench: Bench, orders: Sequence[Order], asked: dict[str, Any]) -> Any:
    """(n, height, width, 3)"""
    off = PreviewOptions("off")
    with Client(bench.served.address) as client:
        pictures = [
            client.generate(
                order.prompt, seed=order.seed, num_inference_steps=20, scheduler="euler", preview=off, **asked
            ).image()
            for order in orders
        ]
    return np.stack([np.asarray(made.pil, dtype=float) for made in pictures])
