"""`darkroom serve` with profiling: engine time by stage, CPU time by thread.

For each line on stdin it writes one line of JSON to stdout: the engine thread's exclusive seconds by stage, and the
process's CPU seconds by thread, both since the start. The functions below are wrapped from here; the server itself is
not instrumented.
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
    "decode": [f"{ENGINE}.decode:Decoder.decode"],
    "text encoding": [f"{ENGINE}.prompt_cache:PromptCache.fetch", f"{ENGINE}.prompt_cache:PromptCache.rows"],
    "beginning samples": [f"{ENGINE}.prepare:make_sample", f"{ENGINE}.prepare:Starter.begin"],
    "events": [f"{ENGINE}.outbox:Outbox.post"],
    "waiting for work": [f"{ENGINE}.engine:Engine._drain_inbox"],
    "other Python": [f"{ENGINE}.engine:Engine._take_turn"],
}
THREADS = {  # purpose by thread name
    "engine": "engine",
    "tables": "scheduler tables",
    "background": "traces",
    "loader": "loading",
    "encoder": "encoding",
    "reader": "requests",
    "planner": "requests",
}


class Clocks:
    """Exclusive seconds and calls of each stage."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._running: list[str] = []
        self._since = 0.0

    def around(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function: exclusive time on the engine's thread, without nested stages."""

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
        """Attribute the time since the last switch to the stage that ran."""
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
            sys.modules["torch"].cuda.synchronize()  # else a stage is charged for earlier launches
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now


def find(target: str) -> tuple[Any, str]:
    """The owner of a function, a module or class, and the attribute's name."""
    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    return functools.reduce(getattr, owners, importlib.import_module(module)), name


def install(clocks: Clocks) -> None:
    """Wrap all stages."""
    for stage, targets in STAGES.items():
        for target in targets:
            owner, name = find(target)
            setattr(owner, name, clocks.around(stage, getattr(owner, name)))


def cpu_by_thread() -> Counter[str]:
    """CPU seconds of this process by thread (Linux). Threads not started by Python are gRPC's, which have names, or the
    engine's OpenMP team."""
    python = {thread.native_id: thread.name for thread in threading.enumerate()}
    main, ticks = Path("/proc/self/comm").read_text(), os.sysconf("SC_CLK_TCK")
    found: Counter[str] = Counter()
    for task in Path("/proc/self/task").iterdir():
        name = python.get(int(task.name), "engine" if (task / "comm").read_text() == main else "grpc")
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        kind = THREADS.get(name.partition("_")[0], "transport")
        found[kind] += (int(fields[11]) + int(fields[12])) / ticks  # utime, stime
    return found


def answer(clocks: Clocks) -> None:
    """Print the readings for each line on stdin."""
    for _ in sys.stdin:
        shown = {"stages": clocks.seconds, "calls": clocks.calls, "cpu": cpu_by_thread()}
        print(json.dumps(shown), flush=True)


if __name__ == "__main__":
    from darkroom_client.cli import main

    installed = Clocks()
    install(installed)
    threading.Thread(target=answer, args=(installed,), daemon=True).start()
    main()
