"""Tiny Stable Diffusion XL models with random weights, in diffusers' format."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from tests import tiny

SECOND_WIDTH, PROJECTED_WIDTH, TIME_WIDTH = 48, 24, 8


def second_tokenizer() -> CLIPTokenizer:
    """The first one, but for the token that it pads with, as SDXL's."""
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = "!"
    return tokenizer


def second_text_encoder(layers: int = 4, **changes: Any) -> CLIPTextModelWithProjection:
    config = tiny.text_encoder(layers).config.to_dict()
    wider = {"hidden_size": SECOND_WIDTH, "projection_dim": PROJECTED_WIDTH, "hidden_act": "gelu", "pad_token_id": 0}
    return CLIPTextModelWithProjection(CLIPTextConfig(**{**config, **wider, **changes}))


def save_sdxl(
    folder: Path,
    seed: int = 0,
    scheduler: dict[str, Any] | None = None,
    vae: dict[str, Any] | None = None,
    force_zeros: bool = True,
    **unet_changes: Any,
) -> Path:
    """A Stable Diffusion XL model of 32x32 pictures, in this folder; with `in_channels=9` one for inpainting."""
    sizes = {
        "cross_attention_dim": 32 + SECOND_WIDTH,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": TIME_WIDTH,
        "projection_class_embeddings_input_dim": 6 * TIME_WIDTH + PROJECTED_WIDTH,
    }
    options = {key: value for key, value in tiny.vae().config.items() if not key.startswith("_")}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = {
            "unet": tiny.unet(**{**sizes, **unet_changes}),
            "vae": AutoencoderKL(**{**options, **(vae or {})}),
            "text_encoder": tiny.text_encoder(),
            "text_encoder_2": second_text_encoder(),
        }
        for part in parts.values():
            tiny.randomise(part)
        tiny.randomise(parts["vae"].decoder.conv_out, gain=4.0)  # pictures of full contrast
    pipeline = StableDiffusionXLPipeline(
        **parts,
        tokenizer=tiny.tokenizer(),
        tokenizer_2=second_tokenizer(),
        scheduler=EulerDiscreteScheduler(**{**tiny.NOISE, **(scheduler or {})}),
        force_zeros_for_empty_prompt=force_zeros,
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)
    return folder
