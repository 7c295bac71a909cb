"""A family whose pictures are pure noise: large at once, and no smaller when they are compressed."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from darkroom_plugins import hookimpl
from darkroom_plugins.contract import Family, ModelInfo
from darkroom_plugins.sample import PromptEmbedding

darkroom_api_version = 1


class Prompt(NamedTuple):
    text: str
    length: int = 1


class Noise(Family):
    name = "noise"
    scheduler_config: dict[str, Any] = {"_class_name": "DDIMScheduler"}  # noqa: RUF012
    meta_components: dict[str, Any] = {}  # noqa: RUF012
    device = torch.device("cpu")
    dtype = torch.float32

    @classmethod
    def detect(cls, model_index):
        return model_index["_class_name"] == "Noise"

    @classmethod
    def describe(cls, files):
        return ModelInfo(
            family="noise",
            prediction_type="epsilon",
            size_factor=8,
            default_width=64,
            default_height=64,
            max_clip_skip=0,
        )

    @classmethod
    def open(cls, files, device, dtype):
        family = cls()
        family.info = cls.describe(files)
        return family

    def latent_shape(self, width, height):
        return 1, height // 8, width // 8

    def prompt_keys(self, request, read):
        return (Prompt(request.prompt),)

    def encode_prompts(self, keys):
        return [PromptEmbedding(torch.zeros(1, 1, 1)) for _ in keys]

    def predict(self, evaluation):
        return evaluation.latents * 0.1

    def decode(self, latents):
        n, _, height, width = latents.shape
        generator = torch.Generator().manual_seed(int(latents.abs().sum() * 1e3))
        return torch.rand((n, 3, height * 8, width * 8), generator=generator) * 2 - 1

    def encode(self, images, generator=None):
        return torch.nn.functional.avg_pool2d(images, 8)[:, :1]


@hookimpl
def darkroom_families():
    return [Noise]


def save_noise(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Noise"}))
    return folder
