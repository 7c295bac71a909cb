"""Style LoRAs for the finished demo model: Hu et al. 2021, "LoRA", trained as the UNet was, on styled pictures.

A picture in the style at some strength is learnt with the adapter at that weight. Trained at full weight alone, half of
it would show next to nothing: what a network makes of a weight is far from linear.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import Conv2d, LoraLayer
from safetensors.torch import load_file

from .data import Scene
from .networks import Network
from .train_unet import LatentPool
from .training import Trainer, scenes_by_strength

UNET_RANK, TEXT_RANK = 16, 4
UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2")
"""The attention, and the residual blocks' convolutions: at the latents' full size the UNet has no attention, and that
is where lines are drawn."""
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
WITH_TEXT = ("stripes",)
"""Styles whose LoRA also changes the text encoder."""


class StylePool(LatentPool):
    """Pictures in a style, at all strengths."""

    def _stream(self, seed: int) -> Iterator[Scene]:
        return scenes_by_strength(seed)


def add_lora(style: str, unet: Network, text_encoder: Network) -> None:
    """Add a style's adapter to frozen networks; initialised to zero effect."""
    unet.add_adapter(_config(UNET_RANK, UNET_TARGETS))
    if style in WITH_TEXT:
        text_encoder.add_adapter(_config(TEXT_RANK, TEXT_TARGETS))


def _config(rank: int, targets: tuple[str, ...]) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(targets))


def load_lora(file: Path, unet: Network, text_encoder: Network) -> None:
    """Give the networks' new adapter the weights of an earlier one, as `save_lora` wrote them."""
    weights = load_file(file)
    for prefix, network in (("unet.", unet), ("text_encoder.text_model.", text_encoder)):
        part = {name.removeprefix(prefix): weights[name].float() for name in weights if name.startswith(prefix)}
        loaded: Any = set_peft_model_state_dict(network, part) if part else None
        if loaded is not None and loaded.unexpected_keys:
            raise ValueError(f"{file} has weights of other layers: {loaded.unexpected_keys}")


def set_weights(networks: Network, weights: list[float]) -> None:
    """Give each row of the batch that comes next its own weight of the adapters."""
    rows = torch.tensor(weights)
    layers: list[Any] = [module for module in networks.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        rest = 3 if isinstance(layer, Conv2d) else 2  # (B, C, h, w) or (B, T, C)
        device = next(layer.parameters()).device
        layer.scaling = dict.fromkeys(layer.scaling, rows.to(device).reshape(-1, *[1] * rest))


def save_lora(style: str, trainer: Trainer, file: Path) -> None:
    """Write the averaged adapter weights, 16-bit, as `StableDiffusionPipeline.load_lora_weights` takes them."""
    text = _weights(trainer.average["text_encoder"]) if style in WITH_TEXT else {}
    StableDiffusionPipeline.save_lora_weights(
        file.parent,
        weight_name=file.name,
        unet_lora_layers=_weights(trainer.average["unet"]),
        # With the prefix that public LoRAs have; transformers 5 dropped it, and diffusers knows of that.
        text_encoder_lora_layers={f"text_model.{name.removeprefix('text_model.')}": text[name] for name in text},
    )
    file.chmod(0o644)  # written for its owner alone, and a package is for everyone


def _weights(network: Network) -> dict[str, Network]:
    """Weights by PEFT's names, half precision."""
    return {name: tensor.half() for name, tensor in get_peft_model_state_dict(network).items()}
