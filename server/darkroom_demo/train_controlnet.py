"""A Canny ControlNet for the finished demo model: Zhang et al. 2023, "Adding Conditional Control to Text-to-Image
Diffusion Models". The model itself is frozen."""

import random
from collections.abc import Iterator

import numpy as np
import torch
from diffusers import ControlNetModel
from PIL import Image
from torch.nn import functional

from .captions import random_caption
from .data import ANYWHERE, Scene, anywhere, told
from .edges import canny
from .networks import LATENT_FACTOR, Network, training_noise
from .tokenizer import token_ids
from .train_unet import EMPTY_CAPTIONS, FRESH, SAVE_EVERY, LatentPool
from .training import Trainer, draw_batch, training_scenes

HINT_CHANNELS = (16, 32, 64)
"""Of the convolutions that bring a map down to the latents' size; each after the first halves it."""
LOOSE = 0.5
"""Share of scenes that lie anywhere, and of the other scenes' captions that leave the layout to the map."""


def new_controlnet(unet: Network) -> Network:
    """Noisy latents, timesteps, text and maps (B, 3, H, W) in [0, 1] to residuals of the UNet; 2.0 M
    parameters. Initialised as a copy of the UNet's encoder with zero convolutions at its outputs."""
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=HINT_CHANNELS)


class EdgePool(LatentPool):
    """Pictures as latent distributions, each with its edge map in further channels (space-to-depth to latent size)."""

    def _stream(self, seed: int) -> Iterator[Scene]:
        rng = random.Random(seed)
        return (anywhere(scene) if rng.random() < LOOSE else scene for scene in training_scenes(seed))

    @torch.no_grad()
    def _encode(self, scenes: list[Scene]) -> torch.Tensor:
        pictures = draw_batch(scenes, self.rng, self.image_size).to(self.vae.device)
        parameters = self.vae.encode(pictures).latent_dist.parameters
        return torch.cat([parameters, functional.pixel_unshuffle(_edge_maps(pictures), LATENT_FACTOR)], dim=1)

    def batch_with_maps(self, count: int) -> tuple[torch.Tensor, torch.Tensor, list[Scene]]:
        """Scaled latents (count, 4, h, w), maps (count, 3, H, W) in [0, 1], and their scenes."""
        where = self.rng.sample(range(len(self.scenes)), count)
        parameters, folded = self.parameters[where].split([8, LATENT_FACTOR**2], dim=1)
        maps = functional.pixel_shuffle(folded, LATENT_FACTOR).expand(-1, 3, -1, -1)
        return self._latents(parameters), maps, [self.scenes[index] for index in where]


def _edge_maps(pictures: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in [-1, 1] to (B, 1, H, W), 0 or 1."""
    pixels = ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    maps = np.stack([canny(Image.fromarray(picture)) for picture in pixels])
    return torch.from_numpy(maps)[:, None].float().to(pictures.device)


def train_controlnet(trainer: Trainer, base: Network, pool: EdgePool, batch: int, max_steps: int) -> None:
    """Train until the clock or `max_steps` runs out, saving regularly. `base` is the model's pipeline."""
    noise = training_noise()
    losses: list[float] = []
    while trainer.running(max_steps):
        latents, maps, scenes = pool.batch_with_maps(batch)
        texts = [_caption(scene, pool.rng) for scene in scenes]
        ids = torch.tensor(token_ids(base.tokenizer, texts), device=trainer.device)
        loss = controlnet_loss(trainer, base, latents, maps, ids, noise)
        trainer.apply(loss)
        pool.refresh(FRESH)
        losses.append(loss.item())
        if trainer.step % SAVE_EVERY == 0:
            print(
                f"controlnet step {trainer.step} {trainer.clock.seconds():.0f} s: loss {np.mean(losses):.4f}",
                flush=True,
            )
            losses.clear()
            trainer.save()
    trainer.save()


def _caption(scene: Scene, rng: random.Random) -> str:
    if rng.random() < EMPTY_CAPTIONS:
        return ""
    loose = scene.position == ANYWHERE or rng.random() < LOOSE
    return random_caption(told(scene) if loose else scene, rng)


def controlnet_loss(
    trainer: Trainer, base: Network, latents: torch.Tensor, maps: torch.Tensor, ids: torch.Tensor, noise: Network
) -> torch.Tensor:
    """MSE of the noise predicted with the maps, at a random timestep per row: scalar."""
    controlnet: Network = trainer.networks["controlnet"]
    epsilon = torch.randn_like(latents)
    times = torch.randint(noise.config.num_train_timesteps, (len(latents),), device=latents.device)
    noisy = noise.add_noise(latents, epsilon, times)
    with trainer.autocast(on_cpu=False):
        text = base.text_encoder(ids).last_hidden_state  # (B, 77, 128)
        down, mid = controlnet(noisy, times, text, controlnet_cond=maps, return_dict=False)
        predicted = base.unet(
            noisy, times, text, down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample
    return functional.mse_loss(predicted.float(), epsilon)
