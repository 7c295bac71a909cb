"""The safety checker finds what diffusers' pipeline finds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from darkroom_plugins.builtin.safety import open_checker
from darkroom_plugins.builtin.safety_checker import SafetyChecker
from darkroom_plugins.files import ModelFiles, load_weights
from tests.tiny import save_safety_checker, save_sd

CPU = torch.device("cpu")
SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "image_size", "patch_size")
LEGACY = {"add_cross_attention": False, "bad_words_ids": None, "prefix": None, "pruned_heads": {}, "top_k": 50}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_safety_checker(save_sd(tmp_path_factory.mktemp("models") / "safe"))


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """(16, 24, 40, 3) uint8: coarse colours, larger than the checker's input in one direction, smaller in the other."""
    coarse = np.random.default_rng(0).integers(0, 256, (16, 3, 5, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def checker(folder: Path, dtype: torch.dtype = torch.float32) -> SafetyChecker:
    files = ModelFiles(folder)
    network: Any = open_checker(files).network
    load_weights(network, files.weights("safety_checker"), dtype)
    return network


def expected(folder: Path, pictures: np.ndarray, dtype: torch.dtype = torch.float32) -> list[bool]:
    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=dtype)
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
    return pipe.run_safety_checker(images, CPU, dtype)[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finds_equal_those_of_the_pipeline(model: Path, pictures: np.ndarray, dtype: torch.dtype) -> None:
    network = checker(model, dtype)
    found = network.concepts_in(list(pictures), CPU, dtype)
    assert found == expected(model, pictures, dtype)
    assert 3 < sum(found) < 13
    if dtype is torch.float32:  # whoever shares the batch
        assert found == [network.concepts_in([each], CPU, dtype)[0] for each in pictures]


def test_files_from_before_version_5_of_transformers(model: Path, pictures: np.ndarray, tmp_path: Path) -> None:
    old = save_safety_checker(save_sd(tmp_path / "old"))
    file = old / "safety_checker" / "model.safetensors"
    weights = {
        name.replace("vision_model.", "vision_model.vision_model."): each for name, each in load_file(file).items()
    }
    weights["vision_model.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(weights, file)
    config = json.loads((old / "safety_checker" / "config.json").read_text())
    for part in ("text_config", "vision_config"):
        config[f"{part}_dict"] = {name: value for name, value in config[part].items() if name in SIZES}
        config[part] |= LEGACY
    (old / "safety_checker" / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}))
    processor = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32, "resample": 3}
    (old / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(processor))
    assert checker(old).concepts_in(list(pictures), CPU, torch.float32) == expected(model, pictures)


def test_a_model_without_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the model has no safety checker"):
        open_checker(ModelFiles(save_sd(tmp_path / "plain")))
