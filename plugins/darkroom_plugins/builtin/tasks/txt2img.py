"""The task of making an image from text alone."""

from __future__ import annotations

from collections.abc import Sequence

from darkroom_plugins import hookimpl
from darkroom_plugins.contract import ModelInfo, Task
from darkroom_plugins.latents import noise_for
from darkroom_plugins.sample import Sample

darkroom_api_version = 1


class Txt2Img(Task):
    """Begins with pure noise (diffusers' StableDiffusionPipeline.prepare_latents)."""

    name = "txt2img"
    description = "An image from text."
    rpcs = ("Generate",)

    def misfit(self, info: ModelInfo) -> str | None:
        return "repaints what is under a mask only" if info.inpainting else None

    def begin(self, sample: Sample) -> None:
        sample.latents = noise_for(sample) * sample.scheduler.init_noise_sigma


@hookimpl
def darkroom_tasks() -> Sequence[Task]:
    return [Txt2Img()]
