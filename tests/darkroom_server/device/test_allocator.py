"""Freed memory is kept for the next evaluation, and given back when a model leaves. In processes of their own, as the
settings are of the whole process and for good."""

import subprocess
import sys

import pytest

MEASURED = """
import resource
import sys
import threading

import psutil
import torch

from darkroom_server.device.allocator import trim_heap, tune_malloc

if sys.argv[1] == "kept":
    tune_malloc()


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.zeros(48 * 2**20, dtype=torch.uint8)  # more than glibc keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def least():
    # glibc's cache of small pieces, which each thread has, keeps some of the large ones apart until it is full.
    found.append(min(faults() for _ in range(10)))


def resident():
    return psutil.Process().memory_info().rss // 2**20


found = []
thread = threading.Thread(target=least)  # as the engine's
thread.start()
thread.join()
print(*found)
before = resident()
trim_heap()
print(before - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
@pytest.mark.slow
def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    faults, freed = _measured("kept")
    assert faults < 1000
    assert freed >= 40  # MiB
    faults, freed = _measured("not kept")
    assert faults >= 20 * 48 * 2**20 / 2**21  # a page of 2 MiB at the most
    assert freed < 40


def _measured(how: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", MEASURED, how], capture_output=True, text=True, check=True, timeout=60)
    return [int(line) for line in done.stdout.split()]
