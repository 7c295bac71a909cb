"""The family of Stable Diffusion XL: two CLIP text encoders, a UNet with size conditioning, a VAE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from darkroom_plugins import hookimpl
from darkroom_plugins.builtin.families.unet import UNetFamily, refusal
from darkroom_plugins.contract import Family, ModelInfo
from darkroom_plugins.deferred import torch
from darkroom_plugins.files import ModelFiles
from darkroom_plugins.request import Request
from darkroom_plugins.sample import Evaluation
from darkroom_plugins.tensors import to_device

darkroom_api_version = 1


class StableDiffusionXL(UNetFamily):
    """A Stable Diffusion XL model: diffusers' StableDiffusionXLPipeline."""

    name = "sdxl"
    classes = {  # noqa: RUF012
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder_2": "CLIPTextModelWithProjection",  # a refiner's only one
    }
    text_encoders = ("text_encoder", "text_encoder_2")
    penultimate = True

    @property
    def float32_components(self) -> tuple[str, ...]:
        """The VAE overflows in float16: force_upcast keeps it in float32."""
        return ("vae",) if self.config("vae").get("force_upcast", True) else ()

    @classmethod
    def describe(cls, files: ModelFiles) -> ModelInfo:
        index = files.index
        if index.get("requires_aesthetics_score") or not (index.get("text_encoder") or [None])[0]:
            raise refusal("it is a refiner, which goes on with the pictures of another model and cannot begin any")
        return replace(super().describe(files), takes_sizes=True)

    def added_conditions(self, evaluation: Evaluation) -> dict[str, Any]:
        """`text_embeds`, the pooled embeddings (rows, width), and `time_ids`, (rows, 6) as the pipeline's
        _get_add_time_ids."""
        pooled = [row.prompt.pooled for row in evaluation.rows if row.prompt.pooled is not None]
        requests = [row.sample.request for row in evaluation.rows]
        text_embeds = evaluation.batch_cache.get_or_make("text_embeds", torch.cat, pooled)
        time_ids = evaluation.batch_cache.get_or_make("time_ids", self._time_ids, requests)
        return {"added_cond_kwargs": {"text_embeds": text_embeds, "time_ids": time_ids}}

    def _time_ids(self, requests: Sequence[Request]) -> torch.Tensor:
        return to_device(torch.tensor([_sizes(each) for each in requests], dtype=self.dtype), self.device)


def _sizes(request: Request) -> tuple[int, ...]:
    """Original height and width, the crop's top and left, target height and width."""
    size, chosen = (request.height, request.width), request.size_conditioning
    return (*chosen.original_size, *chosen.crop, *chosen.target_size) if chosen else (*size, 0, 0, *size)


@hookimpl
def darkroom_families() -> Sequence[type[Family]]:
    return [StableDiffusionXL]
