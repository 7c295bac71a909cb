"""The second stage: the UNet and the text encoder, together, on the latents of the finished autoencoder."""

import itertools
import random
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional
from transformers import CLIPTokenizer

from .captions import random_caption
from .data import Scene
from .networks import Network, training_noise
from .tokenizer import token_ids
from .training import Trainer, draw_batch, training_scenes

EMPTY_CAPTIONS = 0.1
"""Share of pictures whose caption is withheld, which is what guidance steers away from."""
POOL = 8192
"""Encoded pictures kept at hand."""
FRESH = 4
"""Pictures of the pool that each step replaces."""
SAVE_EVERY = 250
ENCODE_BATCH = 64


class LatentPool:
    """Replay pool of training pictures as latent distributions, so that a step need not encode its whole batch."""

    def __init__(self, vae: Network, image_size: int, seed: int, size: int = POOL, style: str = ""):
        self.vae, self.image_size, self.style = vae, image_size, style
        self.rng = random.Random(seed)
        self.stream = self._stream(seed)
        self.scenes = list(itertools.islice(self.stream, size))
        self.next = 0
        parts = [self._encode(self.scenes[i : i + ENCODE_BATCH]) for i in range(0, size, ENCODE_BATCH)]
        self.parameters = torch.cat(parts)  # (size, 8, h, w): means and log variances, unscaled

    def _stream(self, seed: int) -> Iterator[Scene]:
        return training_scenes(seed)

    @torch.no_grad()
    def _encode(self, scenes: list[Scene]) -> torch.Tensor:
        pictures = draw_batch(scenes, self.rng, self.image_size, self.style).to(self.vae.device)
        parameters: torch.Tensor = self.vae.encode(pictures).latent_dist.parameters
        return parameters

    def refresh(self, count: int) -> None:
        """Replace the oldest `count` pictures by new ones."""
        where = [(self.next + i) % len(self.scenes) for i in range(count)]
        fresh = list(itertools.islice(self.stream, count))
        self.parameters[where] = self._encode(fresh)
        for index, scene in zip(where, fresh, strict=True):
            self.scenes[index] = scene
        self.next = (self.next + count) % len(self.scenes)

    def batch(self, count: int) -> tuple[torch.Tensor, list[Scene]]:
        """Scaled latents (count, 4, h, w), each drawn from its picture's distribution, and their scenes."""
        where = self.rng.sample(range(len(self.scenes)), count)
        return self._latents(self.parameters[where]), [self.scenes[index] for index in where]

    def _latents(self, parameters: torch.Tensor) -> torch.Tensor:
        mean, logvar = parameters.chunk(2, dim=1)
        latents = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        return latents * float(self.vae.config.scaling_factor)


def train_unet(
    trainer: Trainer,
    pool: LatentPool,
    tokenizer: CLIPTokenizer,
    batch: int,
    max_steps: int,
    prepare: Callable[[list[Scene]], None] = lambda scenes: None,
) -> None:
    """Train until the clock or `max_steps` runs out, saving regularly. `prepare` is called with each batch's scenes."""
    noise = training_noise()
    losses: list[torch.Tensor] = []
    while trainer.running(max_steps):
        latents, scenes = pool.batch(batch)
        prepare(scenes)
        texts = _captions(scenes, pool.rng)
        ids = torch.tensor(token_ids(tokenizer, texts), device=trainer.device)
        loss = unet_loss(trainer, latents, ids, noise)
        trainer.apply(loss)
        pool.refresh(FRESH)
        losses.append(loss.detach())
        if trainer.step % SAVE_EVERY == 0:
            mean = torch.stack(losses).mean().item()
            print(f"unet step {trainer.step} {trainer.clock.seconds():.0f} s: loss {mean:.4f}", flush=True)
            losses.clear()
            trainer.save()
    trainer.save()


def _captions(scenes: list[Scene], rng: random.Random) -> list[str]:
    return ["" if rng.random() < EMPTY_CAPTIONS else random_caption(scene, rng) for scene in scenes]


def unet_loss(trainer: Trainer, latents: torch.Tensor, ids: torch.Tensor, noise: Network) -> torch.Tensor:
    """MSE of the predicted noise, at a random timestep per row: scalar."""
    unet: Network = trainer.networks["unet"]
    text_encoder: Network = trainer.networks["text_encoder"]
    epsilon = torch.randn_like(latents)
    times = torch.randint(noise.config.num_train_timesteps, (len(latents),), device=latents.device)
    noisy = noise.add_noise(latents, epsilon, times)
    with trainer.autocast(on_cpu=False):
        text = text_encoder(ids).last_hidden_state  # (B, 77, 128)
        predicted = unet(noisy, times, text).sample
    return functional.mse_loss(predicted.float(), epsilon)
