"""Names of a model's layers in LoRA files: diffusers', those of the first code of Stable Diffusion, with dots or
underscores, with any trainer's prefix."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import nn

LAYERS = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm)
# A component's prefixes, with underscores for dots; "" is PEFT's, which names none.
PREFIXES = {
    "text_encoder_2": ("text_encoder_2_", "lora_te2_"),
    "text_encoder": ("text_encoder_", "lora_te_", "lora_te1_", ""),
    "unet": ("unet_", "lora_unet_", "lycoris_unet_", "lycoris_", "diffusion_model_", "model_diffusion_model_", ""),
}
# diffusers once trained attention processors, not layers.
PROCESSORS = {
    re.compile(r"_processor_to_(q|k|v|out)$"): r"_to_\1",
    re.compile(r"_self_attn_to_(q|k|v|out)$"): r"_self_attn_\1_proj",
}
FIRST_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
FIRST_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


class LayerNames:
    """The layers of a model's networks by their names in LoRA files."""

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self._names = {part: dict(_names(part, networks[part])) for part in PREFIXES if part in networks}

    def find(self, name: str) -> tuple[str, str] | None:
        """Component and layer of a name in a file; None if the model has no such layer."""
        flat = _flat(name)
        for part, names in self._names.items():
            for prefix in PREFIXES[part]:
                layer = names.get(flat.removeprefix(prefix)) if flat.startswith(prefix) else None
                if layer is not None:
                    return part, layer
        return None


def component_of(name: str) -> str:
    """The component of a name in a file, by its prefix."""
    flat = _flat(name)
    named = ((part, prefix) for part, prefixes in PREFIXES.items() for prefix in prefixes if prefix)
    bare = "text_encoder" if flat.startswith("text_model_") else "unet"
    return next((part for part, prefix in named if flat.startswith(prefix)), bare)


def _flat(name: str) -> str:
    flat = name.replace(".", "_").removeprefix("base_model_model_")
    for pattern, layer in PROCESSORS.items():
        flat = pattern.sub(layer, flat)
    return flat


def _names(part: str, network: nn.Module) -> Iterator[tuple[str, str]]:
    for layer, module in network.named_modules():
        if isinstance(module, LAYERS):
            for name in _spellings(part, layer, network):
                yield name.replace(".", "_"), layer


def _spellings(part: str, layer: str, network: nn.Module) -> Iterator[str]:
    yield layer
    if layer.endswith(".to_out.0"):
        yield layer.removesuffix(".0")  # of attention processors
    if part != "unet":
        yield f"text_model.{layer}"  # before transformers 5
        yield layer.removeprefix("text_model.")
    elif first := _first_name(layer, network):
        yield first


def _first_name(layer: str, unet: nn.Module) -> str | None:
    """A UNet layer's name in the first code."""
    if match := MIDDLE.fullmatch(layer):
        kind, index, inner = match[1], int(match[2]), match[3]
        return f"middle_block.1.{inner}" if kind == "attentions" else _resnet(f"middle_block.{2 * index}", inner)
    match = BLOCK.fullmatch(layer)
    if not match:
        return FIRST_UNET.get(layer)
    side, block, kind, index, inner = match[1], int(match[2]), match[3], int(match[4]), match[5]
    blocks, size = ("input_blocks", "output_blocks")[side == "up"], unet.config.layers_per_block + 1  # type: ignore
    if kind == "downsamplers":
        return f"{blocks}.{size * (block + 1)}.0.op"
    if kind == "upsamplers":
        attended = hasattr(unet.get_submodule(f"up_blocks.{block}"), "attentions")
        return f"{blocks}.{size * (block + 1) - 1}.{1 + attended}.{inner}"
    place = f"{blocks}.{size * block + index + (side == 'down')}"
    return f"{place}.1.{inner}" if kind == "attentions" else _resnet(f"{place}.0", inner)


def _resnet(place: str, inner: str) -> str:
    return f"{place}.{FIRST_RESNET[inner]}"
