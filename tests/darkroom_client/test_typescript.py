"""The example in TypeScript, with the types that its generator makes, against the real server."""

import io
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.node import ROOT, built, needs_npm
from tests.support import RunningServer, alike, settle

SEED = 2**53 + 1  # JavaScript's numbers do not have it

pytestmark = needs_npm


@pytest.fixture(scope="module")
def program() -> Path:
    return built(ROOT / "client/examples/typescript", "build") / "dist/main.js"


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[RunningServer]:
    models = [{"name": "tiny", "path": tiny_model, "default_num_inference_steps": 10}]
    with RunningServer(models=models, http="127.0.0.1:0", limits={"chunk_bytes": 1024}) as running:
        yield running


def start(server: RunningServer, program: Path, *arguments: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "DARKROOM_URL": server.app.url}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(["node", program, *arguments], env=environment, text=True, **pipes)


def test_pictures_and_previews(server: RunningServer, program: Path, tmp_path: Path) -> None:
    run = start(server, program, "a circle", "2", str(SEED), str(tmp_path))
    output, errors = run.communicate(timeout=60)
    assert (run.returncode, errors) == (0, "")
    assert f"accepted: seeds {SEED}, {SEED + 1}" in output
    assert "image 1: step 10 of 10" in output
    expected = server.generate(prompt="a circle", num_images=2, seed=SEED)
    assert len(expected.of("chunk")) >= 2
    for index, picture in enumerate(expected.pictures()):
        made = Image.open(io.BytesIO((tmp_path / f"{index}.png").read_bytes()))
        assert alike(np.asarray(made), np.asarray(picture))
        for step in (5, 10):
            (preview,) = tmp_path.glob(f"{index}-step-{step}.*")
            Image.open(preview).load()


def test_an_error_is_explained(server: RunningServer, program: Path, tmp_path: Path) -> None:
    run = start(server, program, "a circle", "99", "-1", str(tmp_path))
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "InvalidArgument INVALID_REQUEST" in errors
    assert "\n  parameters.num_images must be from 1 to 16, not 99\n" in errors
    assert "\n  parameters.seed must be " in errors


def test_ctrl_c_stops_the_job(server: RunningServer, program: Path, tmp_path: Path) -> None:
    with server.paused():
        run = start(server, program, "a circle", "1", "1", str(tmp_path))
        assert run.stdout is not None
        assert run.stdout.readline() == "accepted: seeds 1\n"
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=60)
    assert (run.returncode, errors) == (130, "cancelled\n")
    settle(server)
