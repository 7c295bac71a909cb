"""`make bench-gpu`: its stages run one by one, within their limits. What they measure is tried on the CPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.__main__ import STAGES, Stage, main
from tests.pages import ROOT

# Stands for what unpacks wheels into an environment, on machines without a network.
UNPACK = """\
import os, pathlib, sys
assert sys.argv[1:] == ["setup"]
python = pathlib.Path(os.environ["GPUKIT_ENV"]) / "bin/python"
python.parent.mkdir(parents=True)
python.write_text(f"#!/bin/sh\\nPYTHONPATH={os.environ.get('PYTHONPATH', '')} exec {sys.executable} \\"$@\\"\\n")
python.chmod(0o755)
"""


def test_a_stage_ends_at_its_limit_and_only_what_is_not_done_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = {
        "poem": Stage(60, command="this"),
        "endless": Stage(2, command="http.server --bind 127.0.0.1 0"),
        "missing": Stage(60, command="no_such_module"),
        "last": Stage(60, command="this"),
    }
    monkeypatch.chdir(tmp_path)  # which it leaves
    monkeypatch.setattr(sys, "argv", ["gpu", "--dry", "--out", str(tmp_path / "out")])
    for _ in range(2):
        assert main(stages) != 0
        said = {
            name: each["said"]
            for name, each in json.loads((tmp_path / "out/results.json").read_text())["stages"].items()
        }
        assert said == {"poem": "ok", "endless": "cut off at 2 s", "missing": "failed: exit 1", "last": "ok"}
    log = (tmp_path / "out/log.txt").read_text()
    assert log.count("Beautiful is better than ugly.") == 2
    assert log.count("No module named no_such_module") == 2


def test_no_stage_begins_without_time_or_after_a_smoke_test_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = {"smoke": Stage(60, command="no_such_module"), "poem": Stage(60, command="this")}
    monkeypatch.chdir(tmp_path)
    for more, said in (
        ([], {"smoke": "failed: exit 1"}),
        (["--go-on"], {"smoke": "failed: exit 1", "poem": "ok"}),
        (["--seconds", "3"], {"smoke": "no time left", "poem": "ok"}),
    ):
        monkeypatch.setattr(sys, "argv", ["gpu", "--dry", "--out", str(tmp_path / "out"), *more])
        main(stages)
        found = json.loads((tmp_path / "out/results.json").read_text())["stages"]
        assert {name: each["said"] for name, each in found.items()} == said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_stages_run_on_the_cpu(tmp_path: Path) -> None:
    """By the script for machines without a network, as from a copied tree."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    shutil.copy(ROOT / "tests/gpu/check", folder)
    (folder / "stages.py").write_text(UNPACK)
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "GPUKIT_ENV": str(tmp_path / "env"),
        "OUT": str(tmp_path / "out"),
    }
    command = ["bash", str(folder / "check"), "--dry", "--patience", "3", "0", "1", "2", "6", "3a", "5", "more"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    found = json.loads((tmp_path / "out/results.json").read_text())
    names = ["machine", "smoke", "pytest", "networks", "sd15", "memory", "more"]
    assert set(names) < set(STAGES)
    assert {name: each["said"] for name, each in found["stages"].items()} == dict.fromkeys(names, "ok"), done.stdout
    assert found["machine"]["machine"]["TFLOP/s of products, float32"] > 0
    levels = found["smoke"]["smoke"]["levels from the CPU in float32"]
    assert set(map(tuple, levels.values())) == {(0.0, 0.0)}
    assert len(levels) == 7
    assert found["networks sd15"]["networks"]["2 rows"]["ms"] > 0
    assert {row["system"] for row in found["sd15"]["clients"]["rows"]} >= {"(a)", "(b)", "(c)", "server"}
    assert all(row["server"]["mib"] > 0 for row in found["memory sd15"]["memory"])
    assert set(found["more"]) >= {"deterministic", "load", "where", "returning"}
    assert len([file for file in (tmp_path / "out").iterdir() if file.is_file()]) <= 8
