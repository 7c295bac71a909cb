"""What this process may use: processors and memory, a container's limits (control groups, version 1 or 2) included."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")


def available_processors() -> int:
    """The processors that this process may use: its affinity and its container's CPU quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, int(_quota() or affinity)))


@cache
def total_memory(device: torch.device) -> int:
    """Bytes of the device's memory; of the CPU's what this process may have."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = (_read("memory.max"), _read("memory/memory.limit_in_bytes"))
    return min([installed, *(int(limit) for limit in limits if limit.isdecimal())])


def row_bucket(device: torch.device, configured: int | None = None) -> int:
    """The fewest rows of a deterministic batch. The default on a CPU is what a picture with guidance has, so that it is
    evaluated as in diffusers' pipelines; a GPU is better filled with more."""
    return configured or (2 if device.type == "cpu" else 8)


def row_buckets(device: torch.device, most: int, configured: Sequence[int] | None = None) -> tuple[int, ...]:
    """The numbers of rows that batches of up to `most` have; none: any. On CUDA each costs a choice of kernels when it
    comes up first, up to a second: there they are powers of two, and `most`. Elsewhere it costs nothing."""
    if configured is None and device.type == "cuda":
        return (*(1 << power for power in range((most - 1).bit_length())), most)
    return tuple(sorted(configured or ()))


def _quota() -> float | None:
    """Processors; None: not limited."""
    of_both = _read("cpu.max").split() or [_read(f"cpu/cpu.cfs_{name}_us") for name in ("quota", "period")]
    quota, period = of_both
    return float(quota) / float(period) if quota.isdecimal() else None


def _read(name: str) -> str:
    """A limit of the control group; empty if it has none of this name."""
    try:
        return (CGROUP / name).read_text().strip()
    except OSError:
        return ""
