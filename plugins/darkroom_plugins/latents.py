"""Helpers for tasks: encoding pictures, drawing and adding noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from darkroom_plugins.deferred import torch
from darkroom_plugins.request import Request
from darkroom_plugins.sample import Sample
from darkroom_plugins.tensors import to_device

if TYPE_CHECKING:
    from darkroom_plugins.contract import Family
    from darkroom_plugins.request import Pixels


def skipped_evaluations(strength: float, request: Request, timesteps: torch.Tensor, order: int) -> int:
    """How many evaluations a strength skips: diffusers' get_timesteps, but with no step left it skips PNDM's extra
    evaluations, too."""
    steps = request.num_inference_steps
    taken = min(int(steps * strength), steps)
    return (steps - taken) * order if taken else len(timesteps)


def to_tensor(pixels: Pixels) -> torch.Tensor:
    """(height, width, 3) uint8 to (1, 3, height, width) in 0 to 1, float32 on the CPU."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


def vae_input(pixels: Pixels, model: Family) -> torch.Tensor:
    """(height, width, 3) uint8 to (1, 3, height, width) in -1 to 1, on the model's device: for `Family.encode`."""
    return to_device((2.0 * to_tensor(pixels) - 1.0).to(model.dtype), model.device)


def noise_for(sample: Sample) -> torch.Tensor:
    """Noise of the latents' shape, (1, channels, h, w), drawn on the CPU from the sample's generator, as diffusers'
    `randn_tensor`."""
    shape = (1, *sample.model.latent_shape(sample.request.width, sample.request.height))
    return to_device(torch.randn(shape, generator=sample.generator, dtype=sample.model.dtype), sample.model.device)


def noised(sample: Sample, latents: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """The scheduler's `add_noise` at this timestep, (1, channels, h, w). Its two factors are computed on the CPU: on
    the device it would synchronise."""
    one, zero = (torch.full((1, 1, 1, 1), value, dtype=latents.dtype) for value in (1.0, 0.0))
    of_latents = float(sample.scheduler.add_noise(one, zero, timestep[None]))
    of_noise = float(sample.scheduler.add_noise(zero, one, timestep[None]))
    return of_latents * latents + of_noise * noise
