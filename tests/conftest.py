"""Fixtures for all tests: real servers on real sockets, with tiny models."""

import os

# With the default, OpenMP's threads spin while they wait: on a machine that does anything else, everything crawls.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import RunningServer
from tests.tiny import save_sd


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion model of 32x32 pictures with random weights."""
    return save_sd(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_v_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with other weights, predicting v."""
    return save_sd(tmp_path_factory.mktemp("models") / "tiny-v", seed=1, scheduler={"prediction_type": "v_prediction"})


@pytest.fixture(scope="session")
def server(tiny_model: Path, tiny_v_model: Path) -> Iterator[RunningServer]:
    """A server of the models `tiny` (the default), `tiny-v` and `shapes`."""
    from darkroom_server.settings import demo_model

    demo = [demo_model()] if demo_model().path.exists() else []
    models = [{"name": "tiny", "path": tiny_model}, {"name": "tiny-v", "path": tiny_v_model}, *demo]
    with RunningServer(models=models) as running:
        yield running
