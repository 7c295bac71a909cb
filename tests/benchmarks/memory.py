"""Memory and speed of each memory option: the server against diffusers with the same option.

Each runs in its own process. Memory is the peak allocation on the device during a picture on CUDA, else the process's
resident memory after it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch

from tests.benchmarks.bench import Bench
from tests.benchmarks.served import with_torchao

MIB = 2**20
ON_CUDA: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "float16": {},
    "bfloat16": {"dtype": "bfloat16"},
    "attention_slicing": {"attention_slicing": "auto"},
    "vae_slicing": {"vae_slicing": True},
    "vae_tiling": {"vae_tiling": True},
    "offload model": {"offload": "model"},
    "offload sequential": {"offload": "sequential"},
    "offload group": {"offload": "group"},
    "layerwise_casting": {"layerwise_casting": "float8_e4m3fn"},
    "quantize int8": {"quantize": "int8"},
    "quantize float8": {"quantize": "float8"},
    "quantize float8-dynamic": {"dtype": "bfloat16", "quantize": "float8-dynamic"},
}
ON_CPU: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "layerwise_casting": {"dtype": "bfloat16", "layerwise_casting": "float8_e4m3fn"},
    "quantize int8": {"dtype": "bfloat16", "quantize": "int8"},
}


def measure(bench: Bench) -> list[dict[str, Any]]:
    """One row per option or combination: MiB and seconds per step of both, or the error. With --at-once no seconds."""
    device, few, at_once = bench.options.device, bench.options.smoke, bench.options.at_once
    folder = bench.model if bench.cuda or few else bench.large
    edge, steps = (1024 if bench.name == "sdxl" else 512, 8) if bench.cuda else (64, 4)
    ways = [*(ON_CUDA if bench.cuda else ON_CPU).items()][: 1 if few else None]
    print(f"memory options, {folder.name}, a picture of {edge}x{edge} on {device}: MiB, and seconds a step")

    def row(way: tuple[str, dict[str, Any]]) -> dict[str, Any]:
        name, options = way
        found = {side: _apart(side, folder, device, options, edge, steps) for side in MEASURES}
        if at_once > 1:
            for figures in found.values():
                figures.pop("step_s", None)
        return {"option": name, **found}

    rows = []
    with ThreadPoolExecutor(at_once) as pool:
        for made in pool.map(row, ways):
            rows.append(made)
            bench.note(made["option"], {side: made[side] for side in MEASURES})
    return rows


def _apart(side: str, folder: Path, device: str, options: dict[str, Any], edge: int, steps: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.memory", side, str(folder), device, str(edge), str(steps)]
    environment = with_torchao(os.environ) if "quantize" in options else {**os.environ}
    done = subprocess.run([*command, json.dumps(options)], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        return {"error": f"exit {done.returncode}: {done.stderr.strip()[-300:]}"}
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def server(folder: Path, device: str, edge: int, steps: int, options: dict[str, Any]) -> list[float]:
    from tests.support import RunningServer

    model = {"name": "model", "path": folder, "device": device, **options}
    with RunningServer(models=[model]) as running:
        return _made(device, lambda count: _times_of_stream(running, edge, count), steps)


def diffusers(folder: Path, device: str, edge: int, steps: int, options: dict[str, Any]) -> list[float]:
    import diffusers as library

    default = "float16" if device.startswith("cuda") else "float32"
    dtype = getattr(torch, options.get("dtype", default))
    pipe = library.DiffusionPipeline.from_pretrained(folder, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    _configure(pipe, options, torch.device(device), dtype)
    return _made(device, lambda count: _times_of_pipeline(pipe, edge, count), steps)


MEASURES: dict[str, Callable[..., list[float]]] = {"server": server, "diffusers": diffusers}


def _configure(pipe: Any, options: dict[str, Any], device: torch.device, dtype: torch.dtype) -> None:
    """Apply an option as in diffusers' documentation."""
    if options.get("attention_slicing"):
        pipe.enable_attention_slicing(options["attention_slicing"])
    if options.get("vae_slicing"):
        pipe.vae.enable_slicing()
    if options.get("vae_tiling"):
        pipe.vae.enable_tiling()
    if storage := options.get("layerwise_casting"):
        pipe.unet.enable_layerwise_casting(storage_dtype=getattr(torch, storage), compute_dtype=dtype)
    if kind := options.get("quantize"):
        import torchao.quantization as ao

        configs = {
            "int8": ao.Int8WeightOnlyConfig,
            "float8": ao.Float8WeightOnlyConfig,
            "float8-dynamic": lambda: ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow()),
        }
        ao.quantize_(pipe.unet, configs[kind](), device=device)
    match options.get("offload"):
        case "model":
            pipe.enable_model_cpu_offload(device=device)
        case "sequential":
            pipe.enable_sequential_cpu_offload(device=device)
        case "group":
            pipe.enable_group_offload(device, offload_type="leaf_level", use_stream=device.type == "cuda")
        case _:
            pipe.to(device)


def _made(device: str, make: Callable[[int], list[float]], steps: int) -> list[float]:
    """MiB and seconds per step of a picture, after a warm-up."""
    make(2)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    times = make(steps)
    step = statistics.median(b - a for a, b in pairwise(times))
    taken = torch.cuda.max_memory_allocated() if device.startswith("cuda") else psutil.Process().memory_info().rss
    return [taken / MIB, step]


def _times_of_stream(running: Any, edge: int, steps: int) -> list[float]:
    from darkroom.v1.parameters_pb2 import PREVIEW_MODE_OFF, PreviewOptions
    from tests.support import generate_request

    preview = PreviewOptions(mode=PREVIEW_MODE_OFF)
    asked = {"prompt": "x", "width": edge, "height": edge, "num_inference_steps": steps, "scheduler": "euler"}
    stream = running.start(generate_request(**asked, guidance_scale=7.5, preview=preview), timeout=600)
    arrived = [(time.perf_counter(), response.event.WhichOneof("event")) for response in stream.call]
    return [moment for moment, kind in arrived if kind == "step"]


def _times_of_pipeline(pipe: Any, edge: int, steps: int) -> list[float]:
    times = []

    def note(_pipe: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if pipe.unet.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        return tensors

    import diffusers as library

    pipe.scheduler = library.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    asked = {"width": edge, "height": edge, "num_inference_steps": steps, "guidance_scale": 7.5}
    pipe("x", callback_on_step_end=note, **asked)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=MEASURES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("device")
    parser.add_argument("edge", type=int)
    parser.add_argument("steps", type=int)
    parser.add_argument("options", type=json.loads)
    given = parser.parse_args()
    mib, step = MEASURES[given.side](given.folder, given.device, given.edge, given.steps, given.options)
    print(json.dumps({"mib": mib, "step_s": step}))


if __name__ == "__main__":
    main()
