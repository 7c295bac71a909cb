"""How people serve diffusion today: diffusers' pipeline behind a lock, one request at a time, no transport."""

import threading
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from darkroom_plugins.request import SchedulerChoice
from darkroom_plugins.schedulers import ENTRIES
from tests.benchmarks.workload import Order, share

BY_NAME = {entry.name: entry for entry in ENTRIES}


class LockedPipeline:
    """The pipeline that all clients wait for."""

    def __init__(self, model: Path, device: str, dtype: torch.dtype) -> None:
        self._pipe: Any = StableDiffusionPipeline.from_pretrained(model, safety_checker=None, dtype=dtype).to(device)
        self._pipe.set_progress_bar_config(disable=True)
        self._config = self._pipe.scheduler.config
        self._lock = threading.Lock()

    def make(self, order: Order) -> None:
        """Make one picture, as a handler of a simple server would."""
        with self._lock:
            self._pipe.scheduler = BY_NAME[order.scheduler].build(self._config, SchedulerChoice(name=order.scheduler))
            generator = torch.Generator().manual_seed(order.seed)
            self._pipe(
                order.prompt, num_inference_steps=order.steps, guidance_scale=order.guidance, generator=generator
            )

    def run(self, orders: list[Order], clients: int) -> float:
        """The seconds that all clients take."""
        threads = [threading.Thread(target=self._client, args=(part,)) for part in share(orders, clients)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - began

    def _client(self, orders: list[Order]) -> None:
        for order in orders:
            self.make(order)
