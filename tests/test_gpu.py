"""On a CUDA device: the same pictures as diffusers there, every scheduler, and memory that comes back.

Run with `python -m pytest -m gpu`; skipped without a device.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from darkroom_plugins.schedulers import ENTRIES
from tests.support import RunningServer, generate_request

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

REQUEST = {"prompt": "a red circle", "seed": 7, "num_inference_steps": 8, "guidance_scale": 5.0}


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[RunningServer]:
    models = [{"name": "full", "path": tiny_model, "dtype": "float32"}, {"name": "half", "path": tiny_model}]
    with RunningServer(models=models, device="cuda") as running:
        yield running


@pytest.mark.parametrize("name", [entry.name for entry in ENTRIES])
def test_equals_diffusers_on_the_device(name: str, server: RunningServer, tiny_model: Path) -> None:
    from diffusers import StableDiffusionPipeline

    from darkroom_plugins.request import SchedulerChoice

    pipe = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None).to("cuda")
    pipe.set_progress_bar_config(disable=True)
    entry = next(entry for entry in ENTRIES if entry.name == name)
    pipe.scheduler = entry.build(pipe.scheduler.config, SchedulerChoice(name=name))
    arguments = {key: value for key, value in REQUEST.items() if key != "seed"}
    expected = np.asarray(pipe(**arguments, generator=torch.Generator().manual_seed(7)).images[0], dtype=int)
    stranger = server.start(generate_request(prompt="stranger", num_inference_steps=100))
    stranger.read_until("step")
    ours = server.generate(**REQUEST, scheduler=name)
    stranger.call.cancel()
    assert max(step.batch_rows for step in ours.of("step")) > 2
    assert np.abs(ours.pixels[0] - expected).max() <= 2


def test_half_precision_is_close(server: RunningServer) -> None:
    full, half = (server.generate(**REQUEST, model=model).pixels for model in ("full", "half"))
    assert np.abs(full - half).mean() < 4


def test_memory_comes_back(server: RunningServer) -> None:
    server.generate(**REQUEST)
    before = torch.cuda.memory_allocated()
    for seed in range(5):
        stream = server.start(generate_request(prompt="x", seed=seed, num_inference_steps=200, num_images=8))
        stream.read_until("step")
        stream.call.cancel()
    while server.app.engine._batcher:
        server.generate(prompt="x", num_inference_steps=1)
    assert torch.cuda.memory_allocated() - before < 2**20
