"""Upscaling of a first stage's result, for the task that goes on from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from darkroom_plugins.deferred import torch
from darkroom_plugins.errors import NonFinite
from darkroom_plugins.latents import vae_input

if TYPE_CHECKING:
    from darkroom_plugins.request import Pixels
    from darkroom_plugins.sample import Sample

# Modes of torch.nn.functional.interpolate, and Pillow's filters.
OF_LATENTS = {"latent-nearest": "nearest-exact", "latent-bilinear": "bilinear", "latent-bicubic": "bicubic"}
OF_PIXELS = {"pixel-bicubic": Image.Resampling.BICUBIC, "pixel-lanczos": Image.Resampling.LANCZOS}


def upscales_pixels(sample: Sample) -> bool:
    """Whether `upscaled` decodes a picture of the first stage, and encodes it again."""
    hires = sample.request.hires_fix
    return sample.first_stage is not None and hires is not None and hires.upscaler in OF_PIXELS


def upscaled(sample: Sample) -> torch.Tensor:
    """The first stage's latents at the sample's size, by the request's upscaler: (1, channels, h, w). Those that
    upscale pixels draw from the sample's generator, as `Family.encode`.

    :raises NonFinite: the first stage's result has NaN or infinity; latents on a device are not looked at
    """
    request, latents = sample.request, sample.first_stage
    assert latents is not None
    assert request.hires_fix is not None
    if mode := OF_LATENTS.get(request.hires_fix.upscaler):
        if latents.device.type == "cpu":  # elsewhere it would synchronise
            _refuse_non_finite(latents)
        size = sample.model.latent_shape(request.width, request.height)[1:]
        return torch.nn.functional.interpolate(latents.float(), size, mode=mode).to(latents.dtype)
    picture = Image.fromarray(_pixels(sample.model.decode(latents)))
    large = picture.resize((request.width, request.height), OF_PIXELS[request.hires_fix.upscaler])
    return sample.model.encode(vae_input(np.asarray(large), sample.model), sample.generator)


def _pixels(images: torch.Tensor) -> Pixels:
    """(1, 3, height, width) in -1 to 1 to (height, width, 3) uint8, rounded as diffusers' `numpy_to_pil` does."""
    _refuse_non_finite(images)
    picture: Pixels = (images[0].float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    return (picture * 255).round().astype("uint8")


def _refuse_non_finite(result: torch.Tensor) -> None:
    if not result.isfinite().all():
        raise NonFinite("the first stage's result has NaN or infinity")
