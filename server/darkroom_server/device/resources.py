"""What this process may use: processors and memory, within the limits of a container or of a service (control groups,
version 1 or 2)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePosixPath

import torch

CGROUP, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available_processors() -> int:
    """The processors that this process may use: its affinity and its CPU quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, int(_quota() or affinity)))


@cache
def total_memory(device: torch.device) -> int:
    """Bytes of the device's memory; of the CPU's what this process may have."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [_read(group / "memory.max") for group in _groups("")]
    limits += [_read(group / "memory.limit_in_bytes") for group in _groups("memory")]
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
    limits = [_read(group / "cpu.max").split() for group in _groups("")]
    limits += [[_read(group / f"cpu.cfs_{name}_us") for name in ("quota", "period")] for group in _groups("cpu")]
    return min((int(limit[0]) / int(limit[1]) for limit in limits if limit and limit[0].isdecimal()), default=None)


def _groups(controller: str) -> list[Path]:
    """The control group of this process, and those around it, whose limits hold for it too. The controller is that of
    version 1; of version 2 it is empty. In a container the outermost may be its own, whatever the name outside."""
    found = {PurePosixPath("/")}
    for line in _read(OWN_GROUPS).splitlines():
        _, controllers, group = line.split(":", 2)
        if controller in controllers.split(","):
            found |= {PurePosixPath(group), *PurePosixPath(group).parents}
    return [CGROUP / controller / group.relative_to("/") for group in found if group.is_absolute()]


def _read(file: Path) -> str:
    """Its text; empty if it is not there."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""
