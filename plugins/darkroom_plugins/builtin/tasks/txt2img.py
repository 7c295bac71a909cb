"""Text to image."""

from __future__ import annotations

from collections.abc import Sequence

from darkroom_plugins import hookimpl
from darkroom_plugins.contract import ModelInfo, Task
from darkroom_plugins.latents import noise_for
from darkroom_plugins.sample import Sample

darkroom_api_version = 1

INPAINTING_ONLY = "this model repaints what is under a mask, and nothing else"


class Txt2Img(Task):
    """Starts from noise (diffusers' StableDiffusionPipeline.prepare_latents)."""

    name = "txt2img"
    description = "An image from text."
    rpcs = ("Generate",)

    def incompatibility(self, info: ModelInfo) -> str | None:
        return INPAINTING_ONLY if info.inpainting else None

    def begin(self, sample: Sample, parameters: None) -> None:
        sample.latents = noise_for(sample) * sample.scheduler.init_noise_sigma


@hookimpl
def darkroom_tasks() -> Sequence[Task]:
    return [Txt2Img()]
