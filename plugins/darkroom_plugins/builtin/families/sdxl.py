"""The family of Stable Diffusion XL: two CLIP text encoders, a UNet that is told of sizes, a VAE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline

from darkroom_plugins import hookimpl
from darkroom_plugins.builtin.families.unet import UNetFamily, refusal
from darkroom_plugins.contract import Family, ModelInfo
from darkroom_plugins.files import ModelFiles
from darkroom_plugins.request import Request
from darkroom_plugins.sample import Evaluation
from darkroom_plugins.tensors import to_device

darkroom_api_version = 1


class StableDiffusionXL(UNetFamily):
    """A Stable Diffusion XL model: what diffusers' StableDiffusionXLPipeline runs."""

    name = "sdxl"
    pipeline_class = StableDiffusionXLPipeline
    classes = {  # noqa: RUF012
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder_2": "CLIPTextModelWithProjection",  # a refiner has no other
    }
    text_encoders = ("text_encoder", "text_encoder_2")
    penultimate = True

    def dtype_of(self, component: str) -> torch.dtype:
        # Its VAE overflows in half precision, so that it stays in single whatever the others.
        return torch.float32 if component == "vae" and self._config("vae").force_upcast else self.dtype

    @classmethod
    def describe(cls, files: ModelFiles) -> ModelInfo:
        index = files.index
        if index.get("requires_aesthetics_score") or not (index.get("text_encoder") or [None])[0]:
            raise refusal("it is a refiner, which goes on with the pictures of another model and cannot begin any")
        return replace(super().describe(files), takes_sizes=True)

    def added_conditions(self, evaluation: Evaluation) -> dict[str, Any]:
        """The pooled prompts, (rows, width), and each row's sizes, (rows, 6), as the pipeline's _get_add_time_ids."""
        pooled = [row.prompt.pooled for row in evaluation.rows if row.prompt.pooled is not None]
        requests = [row.sample.request for row in evaluation.rows]
        text_embeds = evaluation.batch_cache.get_or_make("text_embeds", torch.cat, pooled)
        time_ids = evaluation.batch_cache.get_or_make("time_ids", self._time_ids, requests)
        return {"added_cond_kwargs": {"text_embeds": text_embeds, "time_ids": time_ids}}

    def _time_ids(self, requests: Sequence[Request]) -> torch.Tensor:
        return to_device(torch.tensor([_sizes(each) for each in requests], dtype=self.dtype), self.device)


def _sizes(request: Request) -> tuple[int, ...]:
    """Original height and width, the crop's top and left, target height and width."""
    own, given = (request.height, request.width), request.size_conditioning
    return (*given.original_size, *given.crop, *given.target_size) if given else (*own, 0, 0, *own)


@hookimpl
def darkroom_families() -> Sequence[type[Family]]:
    return [StableDiffusionXL]
