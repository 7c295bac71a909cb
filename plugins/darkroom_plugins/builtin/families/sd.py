"""The family of Stable Diffusion 1.x and 2.x: one CLIP text encoder, a UNet, a VAE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from darkroom_plugins import hookimpl
from darkroom_plugins.builtin.families.unet import UNetFamily
from darkroom_plugins.contract import Family

darkroom_api_version = 1


class StableDiffusion(UNetFamily):
    """A Stable Diffusion 1.x or 2.x model: diffusers' StableDiffusionPipeline."""

    name = "sd"
    pipeline = "StableDiffusionPipeline"
    classes = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}  # noqa: RUF012
    text_encoders = ("text_encoder",)
    patched_options = {"steps_offset": 1, "clip_sample": False}  # noqa: RUF012

    @classmethod
    def detect(cls, model_index: Mapping[str, Any]) -> bool:
        return super().detect(model_index) and "text_encoder_2" not in model_index


@hookimpl
def darkroom_families() -> Sequence[type[Family]]:
    return [StableDiffusion]
