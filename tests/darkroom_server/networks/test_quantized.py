"""Quantised weights, with torchao, in a process of their own: torchao changes what the libraries do when imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE, TORCHAO = Path(__file__).parent, Path(__file__).parents[3] / ".torchao"
NAMES = "int8 or float8 or quantised"


@pytest.mark.skipif(not TORCHAO.exists(), reason="no .torchao; `make test` makes it")
def test_with_torchao() -> None:
    files = [str(HERE / name) for name in ("test_placement.py", "test_offload.py")]
    paths = [str(TORCHAO), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", NAMES, *files],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "6 passed" in done.stdout
    assert "skipped" not in done.stdout
