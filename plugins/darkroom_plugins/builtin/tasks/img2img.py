"""Image to image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from darkroom_plugins import hookimpl
from darkroom_plugins.builtin.tasks.txt2img import INPAINTING_ONLY
from darkroom_plugins.contract import ModelInfo, Task
from darkroom_plugins.latents import noise_for, noised, skipped_evaluations, vae_input
from darkroom_plugins.request import ImageToImage, Request
from darkroom_plugins.sample import Sample
from darkroom_plugins.upscaling import upscaled

if TYPE_CHECKING:
    import torch

darkroom_api_version = 1


class Img2Img(Task):
    """Starts from the noised latents of the picture (diffusers' StableDiffusionImg2ImgPipeline), or of the upscaled
    result of a first stage."""

    name = "img2img"
    description = "A picture repainted as a whole."
    rpcs = ("Edit",)
    edits = (ImageToImage,)
    adds_noise = True

    def incompatibility(self, info: ModelInfo) -> str | None:
        return INPAINTING_ONLY if info.inpainting else None

    def first_evaluation(self, request: Request, timesteps: torch.Tensor, order: int, parameters: None) -> int:
        edit = request.edit if isinstance(request.edit, ImageToImage) else ImageToImage()
        return skipped_evaluations(edit.strength, request, timesteps, order)

    def begin(self, sample: Sample, parameters: None) -> None:
        if sample.first_stage is not None:
            latents = upscaled(sample)
        else:
            assert sample.canvas.image is not None
            latents = sample.model.encode(vae_input(sample.canvas.image, sample.model), sample.generator)
        if not sample.done:
            latents = noised(sample, latents, noise_for(sample), sample.timestep)
        sample.latents = latents


@hookimpl
def darkroom_tasks() -> Sequence[Task]:
    return [Img2Img()]
