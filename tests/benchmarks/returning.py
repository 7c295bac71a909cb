"""Reload time of a model: from its files, and from its parked weights in CPU memory."""

import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from darkroom_plugins.builtin.families.sd import StableDiffusion
from darkroom_plugins.files import ModelFiles
from darkroom_server.config.settings import ModelSettings
from darkroom_server.models.holdings import ModelHolding
from darkroom_server.models.model import Model
from tests.benchmarks.bench import Bench

MIB = 2**20


def measure(bench: Bench) -> dict[str, float]:
    """Seconds of each, their ratio, and for comparison a plain copy of as many bytes."""
    smoke, device = bench.options.smoke, torch.device(bench.options.device)
    folder, rounds = (bench.model, 1) if smoke else (bench.large, 5)
    settings, files = ModelSettings(name="sd15", path=folder), ModelFiles(folder)
    family = StableDiffusion.open(files, device, torch.float16)
    model = Model(settings, files, family, "ddim", (), family.weight_bytes)
    holding = ModelHolding(model, ready=None)  # type: ignore[arg-type]
    cold, parked, copied = [], [], []
    for _ in range(rounds):
        holding.drop()
        _forget(folder)
        cold.append(_timed(device, holding.load, lambda _: None))
        holding.park()
        parked.append(_timed(device, holding.load, lambda _: None))
        plain = torch.empty(holding.device_bytes, dtype=torch.uint8)
        copied.append(_timed(device, lambda plain=plain: plain.to(device, copy=True)))
    result = {
        "weights_mib": holding.device_bytes / MIB,
        "cold_s": statistics.median(cold),
        "parked_s": statistics.median(parked),
        "plain_copy_s": statistics.median(copied),
    }
    result["ratio"] = result["cold_s"] / result["parked_s"]
    print(
        f"a model of {result['weights_mib']:.0f} MiB comes back in {result['parked_s']:.3f} s when it is parked, in "
        f"{result['cold_s']:.3f} s from its files, read anew: {result['ratio']:.1f} times as fast; "
        f"a plain copy of as many bytes takes {result['plain_copy_s']:.3f} s"
    )
    return result


def _forget(folder: Path) -> None:
    """Drop the files from the page cache."""
    for file in folder.rglob("*.safetensors"):
        with file.open("rb") as open_file:
            os.posix_fadvise(open_file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _timed(device: torch.device, function: Any, *arguments: Any) -> float:
    began = time.perf_counter()
    function(*arguments)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
