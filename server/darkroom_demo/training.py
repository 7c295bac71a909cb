"""Shared by all training stages: wall-clock schedule, weight averaging (EMA), checkpoints, batches of pictures."""

import copy
import math
import random
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .data import Scene, draw, random_scene
from .networks import Network

WARMUP_STEPS = 200
EMA_DECAY = 0.999


@dataclass(slots=True)
class Clock:
    """A time budget: the learning rate decays as it is spent, so that training converges at any speed."""

    minutes: float
    spent: float = 0.0
    """Seconds that earlier, interrupted runs have used."""
    started: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        return self.spent + time.monotonic() - self.started

    def fraction(self) -> float:
        """0 at the start, 1 or more once the budget is spent."""
        return self.seconds() / (self.minutes * 60)


def learning_rate(peak: float, step: int, fraction: float) -> float:
    """Linear warm-up over the first steps, then cosine decay to a hundredth of the peak."""
    decay = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))
    return peak * min(1.0, (step + 1) / WARMUP_STEPS) * decay


class Trainer:
    """Networks, optimiser, running average (EMA) of the weights, and checkpoint file."""

    def __init__(self, networks: dict[str, Network], clock: Clock, path: Path, device: torch.device, peak: float):
        self.networks = nn.ModuleDict(networks).to(device)
        self.average = copy.deepcopy(self.networks).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.networks.parameters(), lr=peak, weight_decay=1e-3, fused=True)
        self.clock, self.path, self.device, self.peak = clock, path, device, peak
        self.step = 0

    def autocast(self, on_cpu: bool) -> AbstractContextManager[object]:
        """bfloat16 matrix products: faster on a GPU, and with AMX for large ones. Without it they are very slow."""
        faster = self.device.type != "cpu" or (on_cpu and bool(torch.cpu.get_capabilities().get("amx_bf16")))
        return torch.autocast(self.device.type, torch.bfloat16, enabled=faster)

    def apply(self, loss: torch.Tensor) -> None:
        """One optimiser step on a scalar loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.peak, self.step, self.clock.fraction())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.networks.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self._track()

    @torch.no_grad()
    def _track(self) -> None:
        # A young average forgets faster, or it would hold the random weights of the start for long.
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.networks.parameters()), 1 - decay)

    def running(self, max_steps: int) -> bool:
        """Whether steps and time are left."""
        return self.step < max_steps and self.clock.fraction() < 1

    def save(self) -> None:
        """Write a checkpoint atomically."""
        state = {
            "networks": self.networks.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.clock.seconds(),
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)

    def resume(self) -> None:
        """Resume from the checkpoint, if there is one."""
        if not self.path.exists():
            return
        state = torch.load(self.path, map_location=self.device, weights_only=True)
        self.networks.load_state_dict(state["networks"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.clock.spent = state["step"], state["seconds"]


def resumed(trainer: Trainer, seed: int) -> Trainer:
    """A trainer resumed from its checkpoint, if there is one, with a fresh random stream."""
    trainer.resume()
    torch.manual_seed(seed + trainer.step)
    return trainer


def training_scenes(seed: int) -> Iterator[Scene]:
    rng = random.Random(seed)
    while True:
        yield random_scene(rng)


def scenes_by_strength(seed: int) -> Iterator[Scene]:
    """Training scenes to be drawn in a style: a quarter of them in full, the others at any strength."""
    rng = random.Random(seed)
    for scene in training_scenes(seed):
        yield replace(scene, strength=1.0 if rng.random() < 0.25 else rng.random())


def draw_batch(scenes: list[Scene], rng: random.Random, image_size: int, style: str = "") -> torch.Tensor:
    """(B, 3, image_size, image_size), float32 in [-1, 1]."""
    pixels = np.stack([np.asarray(draw(scene, rng, image_size, style)) for scene in scenes])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
