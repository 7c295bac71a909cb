"""The sizes of real models' weights in server/README.md, by the memory options."""

import json
import os
import tomllib
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from transformers import PreTrainedModel

from darkroom_plugins.builtin.families.sd import StableDiffusion
from darkroom_plugins.builtin.families.sdxl import StableDiffusionXL
from darkroom_plugins.files import ModelFiles
from darkroom_server.config.settings import MemoryOptions
from darkroom_server.networks.decode_cost import DecodeCosts
from darkroom_server.networks.sizes import device_bytes
from tests.benchmarks.architectures import stable_diffusion_15, stable_diffusion_xl
from tests.pages import ROOT

PAGE = (ROOT / "server/README.md").read_text()
DECODED = {"Stable Diffusion 1.5": (64, 64), "Stable Diffusion XL": (128, 128)}  # latents, in the text below the table
MODELS = {
    "Stable Diffusion 1.5": (StableDiffusion, stable_diffusion_15),
    "Stable Diffusion XL": (StableDiffusionXL, stable_diffusion_xl),
}


def save_headers(network: ModelMixin | PreTrainedModel, folder: Path, **_: object) -> None:
    """Saves a network without its weights: the file has their names and shapes, and a hole."""
    folder = Path(folder)
    if isinstance(network, PreTrainedModel):
        file = folder / "model.safetensors"
        network.config.save_pretrained(folder)
    else:
        file = folder / "diffusion_pytorch_model.safetensors"
        network.save_config(folder)
    tensors, end = {}, 0
    for name, tensor in network.state_dict().items():
        begin, end = end, end + 2 * tensor.numel()
        tensors[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    header = json.dumps(tensors).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(file, 8 + len(header) + end)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_the_table_of_weights(model: str, tmp_path: Path) -> None:
    kind, make = MODELS[model]
    with (
        patch.object(ModelMixin, "save_pretrained", save_headers),
        patch.object(PreTrainedModel, "save_pretrained", save_headers),
        init_empty_weights(),
    ):
        make(tmp_path / "model")
    table = PAGE.partition("| weights, GiB |")[2].partition("\n\n")[0]
    column = table.split("\n")[0].split("|").index(f" {model} ")
    rows = [row.split("|") for row in table.split("\n")[2:]]
    assert len(rows) == 8
    for row in rows:
        setting = row[1].split("`")[1]
        options = tomllib.loads(setting)
        dtype = getattr(torch, options.pop("dtype", "float16"))
        if "quantize" in options and find_spec("torchao") is None:
            continue  # `PYTHONPATH=.torchao` has it
        family = kind.open(ModelFiles(tmp_path / "model"), torch.device("cpu"), dtype)
        size = device_bytes(family, MemoryOptions(**options)) / 2**30
        assert f"{size:.2f}" == row[column + 2].strip(), setting
    largest = DecodeCosts.of(family).whole(*DECODED[model]).bytes / 2**30
    assert f"{largest:.2f} GiB at {' x '.join(str(8 * edge) for edge in DECODED[model])}" in PAGE
