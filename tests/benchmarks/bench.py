"""Shared by all benchmarks: options, server, peers, tables, and figures with a bar."""

import argparse
import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from darkroom_demo import MODEL_PATH
from tests.benchmarks.driving import Run, Turns
from tests.benchmarks.peers import MAX_BATCH, Apart
from tests.benchmarks.served import Served
from tests.benchmarks.workload import Order, Traffic

Row = Mapping[str, object]
NAMED = ("sd15", "sdxl")  # of architectures.py


class Bench:
    """A run of the benchmark. Server and peers start lazily."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.cuda = options.device.startswith("cuda")
        self.name = options.model or ("sd15" if self.cuda else "demo")
        self.bars: list[dict[str, Any]] = []
        self.parts: dict[str, Any] = {}  # results by part
        self.keep: Callable[[], None] = lambda: None  # writes what is there
        self._part = ""
        self._ordered = 0

    def measure(self, part: str, measure: Callable[["Bench"], Any]) -> None:
        """Measure a part. Until it is done, its results are what it noted."""
        self._part, self.parts[part] = part, {}
        self.parts[part] = measure(self)
        self.keep()

    def note(self, what: str, figure: object) -> None:
        """Keep a figure of the part that is being measured, and say it."""
        self.parts[self._part][what] = figure
        self.keep()
        print(f"  {what}: {json.dumps(figure)}"[:1000], flush=True)

    @cached_property
    def large(self) -> Path:
        """The networks of Stable Diffusion 1.5."""
        return self._architecture("sd15")

    @cached_property
    def model(self) -> Path:
        return MODEL_PATH if self.demo else self._architecture(self.name) if self.name in NAMED else Path(self.name)

    def _architecture(self, name: str) -> Path:
        from tests.benchmarks import architectures

        return architectures.made(name, "cuda" if self.cuda else "cpu")

    @cached_property
    def limit(self) -> dict[str, float]:
        """The card's roofline at its dtype (see limits.py); empty on a CPU, and where another rate applies."""
        from tests.benchmarks.limits import limit

        known = self.cuda and not self.options.quantize
        return limit(self.model, self.options.device, self.dtype) if known else {}

    @cached_property
    def dtype(self) -> Any:
        """The dtype of server and peers."""
        import torch

        automatic = "float16" if self.cuda else "float32"
        return getattr(torch, automatic if self.options.dtype == "auto" else self.options.dtype)

    @property
    def demo(self) -> bool:
        """Whether the model is the demo model, which has a ControlNet and LoRAs."""
        return self.name == "demo"

    @cached_property
    def served(self) -> Served:
        """A warmed-up server."""
        served = self.serve()
        count = 4 if self.options.smoke else 64
        orders = [Order(seed, steps=4 + seed % 3) for seed in range(count)]
        try:
            for preview in ("off", "latent-rgb", "full-vae"):
                served.run(Traffic(orders, 32, seconds=self.options.seconds / 4), preview)
            if "does not compile" in served.log:
                raise RuntimeError(served.log)
        except BaseException:
            print(served.log, flush=True)
            served.stop()
            raise
        return served

    def serve(self, clocks: bool = False, **settings: str) -> Served:
        """A further server. `settings`: as environment variables."""
        options = {"compile": "load" if self.options.compile else False, "quantize": self.options.quantize}
        model = None if self.demo else self.model
        if self.options.compile and self.cuda:
            # Not for batches of one row, of which there are none: it would compile apart for them.
            settings = {"DARKROOM_ROW_BUCKETS": "[2, 4, 8, 16, 32]", **settings}
        return Served(model, self.options.device, self.options.dtype, clocks, options, settings)

    @cached_property
    def peers(self) -> Apart:
        """The warmed-up peers."""
        peers = Apart(self.model, self.options.device, self.dtype, self.options.compile)
        peers.run("warm_up", 1 if self.options.smoke else MAX_BATCH)
        return peers

    def start(self) -> None:
        """Start server and peers: on a GPU at once, as both of them compile for minutes with most cores idle."""
        with ThreadPoolExecutor(2 if self.cuda else 1) as pool:
            for each in [pool.submit(lambda: self.served), pool.submit(lambda: self.peers)]:
                each.result()

    def settle_threads(self) -> None:
        """Set the number of threads of server and peers to the best one for (a), unless OMP_NUM_THREADS is set."""
        if self.cuda or "OMP_NUM_THREADS" in os.environ:
            return
        probe = Apart(self.model, self.options.device, self.dtype)
        os.environ["OMP_NUM_THREADS"] = str(probe.run("fastest_threads"))
        probe.stop()

    def stop(self) -> None:
        """Stop server and peers."""
        if "served" in vars(self) and (said := self.served.log):
            print(f"the server's log ends with\n{said[-3000:]}", flush=True)
        for each in ("served", "peers"):
            if each in vars(self):
                vars(self).pop(each).stop()

    def orders(self, kind: Callable[[int], Sequence[Order]], count: int) -> Sequence[Order]:
        """`count` new orders of a kind, with unique prompts; few and short ones in a smoke test."""
        orders = kind(max(4, count // 8) if self.options.smoke else count)
        before, self._ordered = self._ordered, self._ordered + len(orders)
        less = 4 if self.options.smoke else 1
        return [
            dataclasses.replace(order, seed=before + order.seed, steps=max(2, order.steps // less)) for order in orders
        ]

    def traffic(self, kind: Callable[[int], Sequence[Order]], count: int, clients: int = 1) -> Traffic:
        """Closed-loop traffic: `count` new orders of a kind, or with --seconds as many as there is time for."""
        return Traffic(self.orders(kind, count), clients, seconds=self.options.seconds)

    def turns(self, what: str, ways: Mapping[str, Callable[[], Run]], rounds: int = 1) -> Turns:
        """Run the systems in turn, forwards and backwards, for the requested number of rounds times `rounds`; with
        --seconds the requested number. `what`: the traffic."""
        count = 1 if self.options.smoke else self.options.rounds * (1 if self.options.seconds else rounds)
        runs: dict[str, list[Run]] = {name: [] for name in ways}
        for number in range(count):
            for name in reversed(ways) if number % 2 else ways:
                runs[name].append(ways[name]())
                self.note(f"{what}: {name}", [run.row(name) for run in runs[name]])
        return Turns(what, runs)

    def table(self, title: str, rows: Sequence[Row], note: str = "") -> None:
        """Print rows as a table."""
        show(title, rows, note)

    @property
    def _kinds(self) -> list[str]:
        """The kind of model and device, as keys of the bars: the most exact first."""
        how = [*(["compiled"] if self.options.compile else []), *filter(None, [self.options.quantize])]
        device = self.options.device.partition(":")[0]
        return [" ".join([self.name, *how]), *([self.name, device] if self.cuda or not how else [])]

    def hold(
        self,
        what: str,
        value: float,
        at_least: Mapping[str, float] | None = None,
        at_most: Mapping[str, float] | None = None,
    ) -> None:
        """Check a figure against its lower or upper bar for this kind of device, if there is one."""
        bars = at_least or at_most or {}
        if (bar := next((bars[kind] for kind in self._kinds if kind in bars), None)) is not None:
            held = value >= bar if at_least else value <= bar
            sign = "≥" if at_least else "≤"
            self.bars.append({"what": what, "value": value, "bar": f"{sign} {bar:g}", "verdict": _verdict(held)})
            self.keep()


def show(title: str, rows: Sequence[Row], note: str = "") -> None:
    """Print rows as a table."""
    table = Table(title=title, caption=note or None, title_justify="left", caption_justify="left")
    for column, value in rows[0].items():
        table.add_column(column, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    Console(width=None if Console().is_terminal else 150, highlight=False).print(table)


def _verdict(held: bool) -> str:
    return "held" if held else "MISSED"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
