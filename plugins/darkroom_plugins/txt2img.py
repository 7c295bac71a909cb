"""The task of making an image from text alone."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers.utils.torch_utils import randn_tensor

from darkroom_plugins import hookimpl
from darkroom_plugins.contract import Task
from darkroom_plugins.sample import Sample

darkroom_api_version = 1


class Txt2Img(Task):
    """Begins with pure noise (diffusers' StableDiffusionPipeline.prepare_latents)."""

    name = "txt2img"
    description = "An image from text."
    rpcs = ("Generate",)

    def begin(self, sample: Sample) -> None:
        shape = (1, *sample.model.latent_shape(sample.request.width, sample.request.height))
        noise = randn_tensor(shape, sample.generator, sample.model.device, sample.model.dtype)
        sample.latents = noise * sample.scheduler.init_noise_sigma


@hookimpl
def darkroom_tasks() -> Sequence[Task]:
    return [Txt2Img()]
