"""LoRAs of all dialects over the wire: each picture of a batch equals diffusers' with PEFT's merged weights."""

from collections.abc import Iterator
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from darkroom.v1.parameters_pb2 import LoraSpec
from tests.adapters import adapted, merged, saved
from tests.support import RunningServer, generate_request

BASE = {"prompt": "a red circle", "num_inference_steps": 6, "guidance_scale": 3.0, "seed": 7}
WEIGHTS = {"LoRA": 0.5, "DoRA": 0.5, "LoHa": 0.3, "LoKr": 0.3}


@pytest.fixture(scope="module")
def files(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("dialects")
    return {method: saved(adapted(tiny_model, method), folder / method) for method in WEIGHTS}


@pytest.fixture(scope="module")
def dialects(tiny_model: Path, files: dict[str, Path]) -> Iterator[RunningServer]:
    loras = [{"name": name, "path": path} for name, path in files.items()]
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], loras=loras) as running:
        yield running


def picture(model: Path, unet: torch.nn.Module | None) -> np.ndarray:
    parts = {} if unet is None else {"unet": unet}
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(model, safety_checker=None, **parts)
    pipe.set_progress_bar_config(disable=True)
    arguments = {name: value for name, value in BASE.items() if name != "seed"}
    return np.asarray(pipe(**arguments, generator=[torch.Generator().manual_seed(7)]).images[0], dtype=int)


def test_rows_of_one_batch_have_their_own(dialects: RunningServer, tiny_model: Path) -> None:
    plain = picture(tiny_model, None)
    networks = [merged(adapted(tiny_model, method), weight) for method, weight in WEIGHTS.items()]
    expected = [plain, *(picture(tiny_model, network) for network in networks)]
    requests = [generate_request(**BASE, loras=[LoraSpec(name=n, weight=w)]) for n, w in WEIGHTS.items()]
    streams = dialects.together([generate_request(**BASE), *requests])
    for stream, theirs in zip(streams, expected, strict=True):
        stream.read()
        assert max(step.batch_rows for step in stream.of("step")) == 2 * len(expected)
        assert np.abs(stream.pixels[0] - theirs).max() <= 1
    assert all((np.abs(each - plain).max(-1) > 8).mean() > 0.1 for each in expected[1:]), "the case cannot fail"
