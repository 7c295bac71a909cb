"""`darkroom serve` with clocks in it: where the engine's time goes, and which threads take the CPU.

For each line on its standard input it writes one to its standard output, as JSON: the seconds of the engine's thread by
stage, without those of the stages within; the CPU seconds of the process by thread. Both are from the start on. The
clocks are put around the functions below from here: the server knows nothing of them.
"""

import functools
import importlib
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

BUILTIN = "darkroom_plugins.builtin"
ENGINE = "darkroom_server.engine"
STAGES = {
    "denoiser": [
        f"{BUILTIN}.families.unet:UNetFamily.predict",
        f"{BUILTIN}.conditioners.controlnet:ControlNets.condition",
    ],
    "gathering rows": [f"{ENGINE}.denoise:gather"],
    "guidance and scheduler": [f"{ENGINE}.step:advance"],
    "previews": [f"{ENGINE}.previews:PreviewDecoders.decode"],
    "decode": [f"{ENGINE}.decode:decode"],
    "text encoding": [f"{ENGINE}.prompt_cache:PromptCache.fetch", f"{ENGINE}.prompt_cache:PromptCache.rows"],
    "beginning samples": [f"{ENGINE}.prepare:make_sample", f"{ENGINE}.prepare:begin"],
    "events": [f"{ENGINE}.engine:Engine._flush_events"],
    "waiting for work": [f"{ENGINE}.engine:Engine._drain_inbox"],
    "other Python": [f"{ENGINE}.engine:Engine._take_turn"],
}
THREADS = {  # what they do, by their names
    "engine": "engine",
    "tables": "scheduler tables",
    "background": "traces",
    "loader": "loading",
    "encoder": "encoding",
    "reader": "requests",
    "planner": "requests",
}


class Clocks:
    """The seconds of each stage, and how often it ran."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._running: list[str] = []
        self._since = 0.0

    def around(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed on the engine's thread; while a stage within runs, this one's clock stands still."""

        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            if threading.current_thread().name != "engine":
                return function(*arguments, **named)
            self._turn()
            self._running.append(stage)
            self.calls[stage] += 1
            try:
                return function(*arguments, **named)
            finally:
                self._turn()
                self._running.pop()

        return timed

    def _turn(self) -> None:
        """Give the time since the last turn to the stage that ran."""
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
            sys.modules["torch"].cuda.synchronize()  # else a stage would pay for the one before
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now


def find(target: str) -> tuple[Any, str]:
    """What has the function, a module or a class, and its name there."""
    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    return functools.reduce(getattr, owners, importlib.import_module(module)), name


def install(clocks: Clocks) -> None:
    """Put the clocks around all stages."""
    for stage, targets in STAGES.items():
        for target in targets:
            owner, name = find(target)
            setattr(owner, name, clocks.around(stage, getattr(owner, name)))


def cpu_by_thread() -> Counter[str]:
    """CPU seconds of this process (Linux). Threads that Python did not start are gRPC's, which name themselves, or
    OpenMP's, which work for the engine."""
    python = {thread.native_id: thread.name for thread in threading.enumerate()}
    main, ticks = Path("/proc/self/comm").read_text(), os.sysconf("SC_CLK_TCK")
    found: Counter[str] = Counter()
    for task in Path("/proc/self/task").iterdir():
        name = python.get(int(task.name), "engine" if (task / "comm").read_text() == main else "grpc")
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        kind = THREADS.get(name.partition("_")[0], "transport")
        found[kind] += (int(fields[11]) + int(fields[12])) / ticks  # user and system
    return found


def answer(clocks: Clocks) -> None:
    """Say what the clocks show, each time somebody asks."""
    for _ in sys.stdin:
        shown = {"stages": clocks.seconds, "calls": clocks.calls, "cpu": cpu_by_thread()}
        print(json.dumps(shown), flush=True)


if __name__ == "__main__":
    from darkroom_client.cli import main

    installed = Clocks()
    install(installed)
    threading.Thread(target=answer, args=(installed,), daemon=True).start()
    main()
