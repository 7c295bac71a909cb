"""Real architectures with random weights: sufficient to measure speed and memory.

`python -m tests.benchmarks.architectures cuda sd15 sdxl` makes them; benchmarks make those that are not there.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.tiny import NOISE, tokenizer
from tests.tiny_sdxl import second_tokenizer

UNET_XL: dict[str, Any] = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}


UNET_15: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}


def made(name: str, device: str) -> Path:
    """The folder of `sd15` or `sdxl`."""
    return {"sd15": stable_diffusion_15, "sdxl": stable_diffusion_xl}[name](Path(".cache") / name, device)


def stable_diffusion_15(folder: Path, device: str = "cpu") -> Path:
    """The networks of Stable Diffusion 1.5 (860, 84 and 123 million parameters) in half precision, made once. On a GPU
    random numbers take no time."""
    if (folder / "model_index.json").exists():
        return folder
    torch.manual_seed(0)
    with torch.device(device):
        networks = {
            "unet": UNet2DConditionModel(**UNET_15).half(),
            "vae": vae_15().half(),
            "text_encoder": CLIPTextModel(_text(768, 12)).half(),
        }
    pipeline = StableDiffusionPipeline(
        **networks,
        tokenizer=tokenizer(),
        scheduler=DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def stable_diffusion_xl(folder: Path, device: str = "cpu") -> Path:
    """The networks of Stable Diffusion XL (2567, 84, 123 and 695 million parameters) in half precision, made once."""
    if (folder / "model_index.json").exists():
        return folder
    torch.manual_seed(0)
    second = _text(1280, 32, hidden_act="gelu", projection_dim=1280, pad_token_id=0)
    with torch.device(device):
        networks = {
            "unet": UNet2DConditionModel(**UNET_XL).half(),
            "vae": vae_xl().half(),
            "text_encoder": CLIPTextModel(_text(768, 12)).half(),
            "text_encoder_2": CLIPTextModelWithProjection(second).half(),
        }
    pipeline = StableDiffusionXLPipeline(
        **networks,
        tokenizer=tokenizer(),
        tokenizer_2=second_tokenizer(),
        scheduler=EulerDiscreteScheduler(**NOISE),
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def vae_15() -> AutoencoderKL:
    return _vae(512)


def vae_xl() -> AutoencoderKL:
    return _vae(1024, scaling_factor=0.13025, force_upcast=True)


def _vae(sample_size: int, **options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=sample_size,
        **options,
    )


def _text(width: int, layers: int, **options: Any) -> CLIPTextConfig:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64}
    return CLIPTextConfig(vocab_size=49408, num_hidden_layers=layers, **sizes, **options)


if __name__ == "__main__":
    for each in sys.argv[2:]:
        made(each, sys.argv[1])
