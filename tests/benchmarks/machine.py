"""The machine: versions, and the rates that bound all others."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from darkroom_plugins.tensors import to_device
from tests.benchmarks.bench import Bench
from tests.benchmarks.limits import TERA, launch_seconds, matrix_rate, seconds_on

PACKAGES = """
torch triton torchao diffusers transformers accelerate peft huggingface-hub safetensors tokenizers numpy scipy pillow
opencv-python-headless grpcio protobuf pydantic pluggy pytest
"""
BYTES = 2**28


def measure(bench: Bench) -> dict[str, Any]:
    """TFLOP/s of matrix products by dtype, GB/s of copies, and microseconds to launch an operation and a small copy."""
    device, cuda = bench.options.device, bench.cuda
    bench.note("versions", {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES.split()}})
    bench.note("cores", os.cpu_count())
    if cuda:
        properties = torch.cuda.get_device_properties(0)
        versions = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        bench.note("card", {"name": properties.name, "GiB": properties.total_memory / 2**30, **versions})
    for dtype in (torch.float16, torch.bfloat16, torch.float32) if cuda else (torch.float32,):
        rate = matrix_rate(device, dtype, *((8192, 10) if cuda else (256, 2)))
        bench.note(f"TFLOP/s of products, {str(dtype).removeprefix('torch.')}", rate / TERA)
    there = torch.empty(BYTES, dtype=torch.uint8, device=device)
    sources = {"device": there.clone(), "pageable memory": torch.empty(BYTES, dtype=torch.uint8)}
    if cuda:
        sources["pinned memory"] = torch.empty(BYTES, dtype=torch.uint8).pin_memory()
    for name, source in sources.items():
        seconds = seconds_on(device, lambda source=source: there.copy_(source, non_blocking=True), 5)
        bench.note(f"GB/s of copies from {name}", BYTES / seconds / 1e9)
    small, numbers = torch.zeros(8, device=device), torch.ones(8)
    bench.note("us to launch an operation", 1e6 * launch_seconds(device, lambda: small.add_(1), 1000))
    bench.note(
        "us to launch a copy to the device",
        1e6 * launch_seconds(device, lambda: to_device(numbers, small.device), 1000),
    )
    return bench.parts["machine"]  # type: ignore[no-any-return]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
