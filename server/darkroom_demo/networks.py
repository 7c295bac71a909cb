"""The demo model's VAE, UNet and text encoder, small enough to train on a CPU in an afternoon."""

from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

Network = Any
"""An object of diffusers or transformers, whose classes a type checker cannot read."""

LATENT_FACTOR = 4
"""Pixels of a picture's edge to one latent's."""
MAX_TOKENS = 77

LATENT_STD = 0.4
"""Standard deviation of the scaled latents. Not 1: over so few latents a flat background would show through even the
noise of the first step; the model would learn to read it there, and find none when it samples from pure noise."""

NOISE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
}
"""The noise that training adds and sampling takes away, as in Stable Diffusion 1.x."""


def new_vae(image_size: int) -> Network:
    """Pictures (B, 3, H, W) in [-1, 1] to latents (B, 4, H/4, W/4) and back; 0.7 M parameters."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        # Few groups: normalising a channel or two alone would wipe out the very colour of a flat background.
        norm_num_groups=4,
        sample_size=image_size,
    )


def new_unet(image_size: int) -> Network:
    """Noisy latents, timesteps and text (B, 77, 128) to the noise; 4.2 M parameters."""
    return UNet2DConditionModel(
        sample_size=image_size // LATENT_FACTOR,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=128,
        attention_head_dim=4,
    )


def new_text_encoder(vocab_size: int, end_token: int) -> Network:
    """Token ids (B, 77) to text (B, 77, 128); 0.5 M parameters."""
    config = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=512,
        projection_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=end_token - 1,
        eos_token_id=end_token,
        pad_token_id=end_token,
    )
    return CLIPTextModel(config)


def training_noise() -> Network:
    return DDPMScheduler(**NOISE)


def sampling_scheduler() -> Network:
    """The exported folder's scheduler; its config fits any other epsilon scheduler."""
    return DDIMScheduler(**NOISE, set_alpha_to_one=False, steps_offset=1)
