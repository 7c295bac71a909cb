"""Servers in processes of their own, which may be killed at any time, and are watched from outside."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.scraping import samples

# A process with all of the server's modules, which makes servers by forking: importing them takes most of a start.
FORKS = """
import asyncio, json, os, resource, signal, sys
import diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion, transformers.models.clip.modeling_clip
from darkroom_plugins.manager import load_plugins
from darkroom_server.app import run
from darkroom_server.config.settings import Settings
from tests import noise_family

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    limit, settings = json.loads(line)
    if child := os.fork():
        print(child, flush=True)
        continue
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    asyncio.run(run(Settings(**settings), load_plugins(extra={"noise": noise_family}), owns_process=True))
"""


@contextmanager
def forking() -> Iterator["subprocess.Popen[str]"]:
    """What servers are forked from, as long as it is needed."""
    root = Path(__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", FORKS], stdin=-1, stdout=-1, text=True, cwd=root) as running:
        yield running
        running.kill()


class KillableServer:
    """A server that may be killed, always on one address and with one folder of kept jobs."""

    def __init__(self, forks: "subprocess.Popen[str]", folder: Path, **settings: Any) -> None:
        self.address, self._metrics = f"unix:{folder / 'socket'}", f"127.0.0.1:{_free_port()}"
        own = {"listen": self.address, "metrics": self._metrics, "state_dir": folder / "state", "threads": 1}
        self._settings = {**own, **settings}
        self._forks = forks
        self._process: psutil.Process | None = None

    def start(self, limit: int = 0) -> None:
        """`limit`: bytes of a file."""
        assert self._forks.stdin is not None
        assert self._forks.stdout is not None
        self._forks.stdin.write(json.dumps([limit, self._settings], default=str) + "\n")
        self._forks.stdin.flush()
        said = [self._forks.stdout.readline(), self._forks.stdout.readline()]
        self._process = psutil.Process(int(next(line for line in said if line.strip().isdigit())))
        while not any("ready" in line for line in said):
            said.append(self._forks.stdout.readline())

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)

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
