"""The first stage: the autoencoder between pictures and latents."""

import itertools
import random
from collections.abc import Sequence

import torch
from torch.nn import functional

from .networks import LATENT_STD, Network
from .training import Trainer, draw_batch, scenes_by_strength, training_scenes

KL_WEIGHT = 3e-4
"""Of the KL divergence per latent. Little, but enough that the decoder forgives small errors in the latents."""
DECODER_NOISE = 0.1
"""The most noise that the decoder's own stage adds to latents, in their standard deviations: what a UNet predicts is
never exact, and edges shall be sharp all the same."""
SAVE_EVERY = 250


def train_vae(
    trainer: Trainer, image_size: int, seed: int, batch: int, max_steps: int, styles: Sequence[str] = ("",)
) -> None:
    """Train until the clock or `max_steps` runs out, saving regularly; each batch is drawn in one of `styles`,
    at any strength.

    With a frozen encoder this is the decoder stage, which may run in parallel to the UNet's.
    """
    rng = random.Random(seed + trainer.step)
    stream = scenes_by_strength(seed + trainer.step)
    vae: Network = trainer.networks["vae"]
    while trainer.running(max_steps):
        scenes = list(itertools.islice(stream, batch))
        pictures = draw_batch(scenes, rng, image_size, rng.choice(styles)).to(trainer.device)
        loss, error = vae_loss(trainer, vae, pictures)
        trainer.apply(loss)
        if trainer.step % SAVE_EVERY == 0:
            print(f"vae step {trainer.step} {trainer.clock.seconds():.0f} s: mean error {error:.4f}", flush=True)
            trainer.save()
    trainer.save()


def freeze_encoder(vae: Network) -> None:
    """Train only the decoder from here on: the latents stay fixed."""
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)


def freeze_decoder(vae: Network) -> None:
    """Train only the encoder from here on, for pictures that are new to the decoder."""
    vae.decoder.requires_grad_(False)
    vae.post_quant_conv.requires_grad_(False)


def vae_loss(trainer: Trainer, vae: Network, pictures: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The loss, and the mean absolute error of the pictures in [-1, 1]."""
    with trainer.autocast(on_cpu=True):
        posterior = vae.encode(pictures).latent_dist
        latents = posterior.sample()
        if not vae.quant_conv.weight.requires_grad:
            amount = torch.rand(len(latents), 1, 1, 1, device=latents.device) * DECODER_NOISE * latents.std()
            latents = latents + amount * torch.randn_like(latents)
        decoded = vae.decode(latents).sample.float()
    error = functional.l1_loss(decoded, pictures)
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    loss = error + functional.mse_loss(decoded, pictures) + edge_loss(decoded, pictures) + KL_WEIGHT * divergence
    return loss, error.item()


def edge_loss(decoded: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """Gradient loss, the error of differences between neighbouring pixels: most of a picture is flat, and edges
    dominate perception."""
    off = decoded - pictures
    return off.diff(dim=-1).abs().mean() + off.diff(dim=-2).abs().mean()


@torch.no_grad()
def set_scaling(vae: Network, image_size: int, seed: int, device: torch.device) -> None:
    """Set the scaling factor that gives latents a standard deviation of LATENT_STD."""
    scenes = list(itertools.islice(training_scenes(seed), 256))
    latents = vae.encode(draw_batch(scenes, random.Random(seed), image_size).to(device)).latent_dist.mode()
    vae.register_to_config(scaling_factor=round(LATENT_STD / latents.std().item(), 5))
