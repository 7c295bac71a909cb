"""The benchmark runs, and writes what it found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.benchmarks import architectures, limits

ROOT = Path(__file__).parents[1]


# Not there on every machine with a GPU, and not needed for what is measured on one.
WITHOUT = (
    "import runpy, sys; sys.modules.update(ray=None, simpy=None, structlog=None, cryptography=None, psycopg=None); "
)
WITHOUT += "runpy.run_module('tests.benchmarks', run_name='__main__', alter_sys=True)"


def bench(*options: str) -> str:
    command = [sys.executable, "-c", WITHOUT, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_a_part_is_measured_beside_the_peers(tmp_path: Path) -> None:
    assert "short jobs behind long ones" in bench("--smoke", "--only", "short", "--out", str(tmp_path))
    found = json.loads((tmp_path / "cpu.json").read_text())
    assert [row["system"] for row in found["short"]["rows"]] == ["(a)", "(b)", "server"]
    assert all(row["short s"] > 0 for row in found["short"]["rows"])
    assert [bar["bar"] for bar in found["bars"]] == ["≤ 0.35"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_cuda_device_it_says_that_it_is_skipped(tmp_path: Path) -> None:
    assert bench("--device", "cuda", "--out", str(tmp_path)).startswith("skipped: ")
    assert not list(tmp_path.iterdir())


def test_operations_of_stable_diffusion_xl(tmp_path: Path) -> None:
    with torch.device("meta"):
        unet, vae = architectures.UNet2DConditionModel(**architectures.UNET_XL), architectures.vae_xl()
    unet.save_config(tmp_path / "unet")
    vae.save_config(tmp_path / "vae")
    assert limits.unet_operations(architectures.UNET_XL) == pytest.approx(6.76e12, rel=1e-3)
    assert limits.decode_operations(tmp_path) == pytest.approx(10.47e12, rel=1e-3)
