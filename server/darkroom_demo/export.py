"""Export of trained networks as a diffusers folder, for `StableDiffusionPipeline.from_pretrained`."""

import json
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer

from .networks import Network, sampling_scheduler
from .tokenizer import save_tokenizer


def pipeline_of(vae: Network, unet: Network, text_encoder: Network, tokenizer: CLIPTokenizer) -> Network:
    """The networks as a pipeline, without a safety checker."""
    return StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=sampling_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export(pipeline: Network, folder: Path) -> None:
    """Write the pipeline in half precision, which loads at any precision. Converts the pipeline in place."""
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    save_tokenizer(pipeline.tokenizer, folder / "tokenizer")
    _forget_dtype(folder / "text_encoder" / "config.json")
    for weights in folder.rglob("*.safetensors"):
        weights.chmod(0o644)  # they are written for their owner alone, and a package is for everyone


def _forget_dtype(config: Path) -> None:
    # transformers would load the text encoder as the half precision it was saved in, beside a 32-bit UNet.
    fields = json.loads(config.read_text())
    fields["dtype"] = "float32"
    config.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
