"""Servers in processes of their own, which may be killed at any time, and are watched from outside."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.scraping import samples

# A process with all of the server's modules, which makes servers by forking: importing them takes most of a start.
FORKS = """
import asyncio, gc, json, os, resource, signal, sys
import diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion, transformers.models.clip.modeling_clip
from darkroom_plugins.manager import load_plugins
from darkroom_server.app import run
from darkroom_server.config.settings import Settings
from tests import deadly, noise_family

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
plugins = load_plugins(extra={"noise": noise_family, "deadly": deadly})
gc.freeze()  # else the first collection of each server copies all of it
for line in sys.stdin:
    limit, said, settings = json.loads(line)
    if child := os.fork():
        print(child, flush=True)
        continue
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    asyncio.run(run(Settings(**settings), plugins, owns_process=True))
"""


class Forks:
    """What servers are forked from. Its process ends with the block."""

    def __enter__(self) -> "Forks":
        command, root = [sys.executable, "-c", FORKS], Path(__file__).parents[1]
        self._process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True, cwd=root)
        return self

    def __exit__(self, *error: object) -> None:
        with self._process:
            self._process.kill()

    def fork(self, said: Path, settings: dict[str, Any], limit: int) -> psutil.Process:
        """A server's process, which writes what it says to a file."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([limit, said, settings], default=str) + "\n")
        self._process.stdin.flush()
        return psutil.Process(int(self._process.stdout.readline()))


class KillableServer:
    """A server that may be killed, always on one address and with one folder of kept jobs."""

    def __init__(self, forks: Forks, folder: Path, **settings: Any) -> None:
        self.address, self._metrics = f"unix:{folder / 'socket'}", f"127.0.0.1:{_free_port()}"
        self.state, self._said = folder / "state", folder / "said"
        own = {"listen": self.address, "metrics": self._metrics, "state_dir": self.state, "threads": 1}
        self._settings = {**own, **settings}
        self._forks = forks
        self._process: psutil.Process | None = None

    def start(self, limit: int = 0) -> None:
        """Returns when it serves. `limit`: bytes of a file."""
        self.begin(limit)
        while not self.ready and self.alive:
            time.sleep(0.02)

    def begin(self, limit: int = 0) -> None:
        """Start it, and do not wait."""
        self._said.write_text("")
        self._process = self._forks.fork(self._said, self._settings, limit)

    @property
    def ready(self) -> bool:
        """Whether it has said that it serves."""
        return "ready" in self._said.read_text()

    @property
    def cpu_seconds(self) -> float:
        """That it has used; 0 once it has ended."""
        assert self._process is not None
        try:
            used = self._process.cpu_times()
        except psutil.NoSuchProcess:
            return 0.0
        return float(used.user + used.system)

    def kill(self) -> None:
        """Returns when it has ended; at once if it had, or was never begun."""
        if self._process is not None:
            with suppress(psutil.NoSuchProcess):
                self._process.kill()
                self._process.wait()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.is_running()

    @property
    def memory(self) -> int:
        """Resident, in bytes."""
        assert self._process is not None
        resident: int = self._process.memory_info().rss
        return resident

    def read(self) -> dict[str, float]:
        """Its metrics. See scraping."""
        with urllib.request.urlopen(f"http://{self._metrics}/metrics", timeout=60) as answer:
            return samples(answer.read().decode())


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def many(name: str, few: float) -> float:
    """How much of something a test does: few in `make test`, what `make soak NAME=…` says else."""
    return float(os.environ.get(f"DARKROOM_{name}", few))
