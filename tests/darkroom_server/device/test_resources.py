"""What a process may use, in a container and without one."""

from pathlib import Path

import pytest
import torch

from darkroom_server.device import resources
from darkroom_server.device.resources import available_processors, total_memory


@pytest.mark.parametrize(
    ("files", "most"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"system.slice/darkroom.service/cpu.max": "300000 100000\n", "system.slice/cpu.max": "max 100000\n"}, 3),
        ({"system.slice/darkroom.service/cpu.max": "max 100000\n", "system.slice/cpu.max": "200000 100000\n"}, 2),
        ({f"cpu/services/darkroom/cpu.cfs_{name}_us": "100000\n" for name in ("quota", "period")}, 1),
        ({"other.slice/cpu.max": "100000 100000\n"}, 8),
    ],
)
def test_a_containers_quota_counts(
    files: dict[str, str], most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    own = "4:cpu,cpuacct:/services/darkroom\n2:memory:/\n0::/system.slice/darkroom.service\n"
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(resources, "CGROUP", tmp_path)
    monkeypatch.setattr(resources, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(resources.os, "sched_getaffinity", lambda pid: set(range(8)))
    assert available_processors() == most


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
@pytest.mark.parametrize(("text", "limited"), [("4096\n", True), ("max\n", False)])
def test_a_containers_memory_counts(
    name: str, text: str, limited: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    monkeypatch.setattr(resources, "CGROUP", tmp_path)
    total_memory.cache_clear()
    found = total_memory(torch.device("cpu"))
    total_memory.cache_clear()
    assert (found == 4096) is limited
    assert found > 0
