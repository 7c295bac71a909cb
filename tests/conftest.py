"""Fixtures for all tests: real servers on real sockets, with tiny models."""

import gc
import json
import os
import signal

# Tiny models: several threads would spend more time waiting for each other than they save.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, configuration, settings

from tests.support import RunningServer
from tests.tiny import NOISE, save_sd

# Started in the background by a shell, tests and the processes that they start would ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Property tests: the same examples each time, and no limit that depends on the machine's speed.
configuration.set_hypothesis_home_dir(Path(__file__).parents[1] / ".cache" / "hypothesis")
settings.register_profile(
    "tests",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tests")


def pytest_collection_finish() -> None:
    """Servers and tests collect garbage often: without what is imported that takes a tenth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def subnormal_numbers() -> None:
    """Libraries built with -ffast-math turn them off for the thread that loads them; Hypothesis counts on them."""
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion model of 32x32 pictures with random weights."""
    return save_sd(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_v_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with other weights, predicting v."""
    return save_sd(tmp_path_factory.mktemp("models") / "tiny-v", seed=1, scheduler={"prediction_type": "v_prediction"})


@pytest.fixture(scope="session")
def tiny_silent_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with other weights, and a scheduler whose file leaves to the pipeline what it patches."""
    folder = save_sd(tmp_path_factory.mktemp("models") / "tiny-silent", seed=2)
    config = {key: value for key, value in NOISE.items() if key != "steps_offset"}
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({"_class_name": "DDIMScheduler", **config}))
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"][1] = "DDIMScheduler"
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="session")
def server(tiny_model: Path, tiny_v_model: Path, tiny_silent_model: Path) -> Iterator[RunningServer]:
    """A server of the models `tiny` (the default), `tiny-v`, `tiny-silent` and `shapes`."""
    from darkroom_server.config.demo import demo_model

    demo = [demo_model()] if demo_model().path.exists() else []
    folders = {"tiny": tiny_model, "tiny-v": tiny_v_model, "tiny-silent": tiny_silent_model}
    models = [*({"name": name, "path": path} for name, path in folders.items()), *demo]
    with RunningServer(models=models) as running:
        yield running
