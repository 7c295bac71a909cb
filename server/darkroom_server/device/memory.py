"""How much memory there is."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import torch

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@cache
def total_memory(device: torch.device) -> int:
    """Bytes of the device's memory; of the CPU's what this process may have, a container's limit included."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return min((os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits()))


def _limits() -> list[int]:
    found = []
    for path in map(Path, CGROUP_LIMITS):
        try:
            found.append(int(path.read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return found
