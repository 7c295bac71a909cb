"""Names of layers in the first code of Stable Diffusion, by diffusers' names."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import count

FIRST_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj",
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
FIRST_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
FIRST_VAE = {"conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut"}
BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def unet_layer(layer: str, names: Collection[str]) -> str | None:
    """A UNet's layer; None if the first code had none of its kind. `names` are of all its weights."""
    if match := MIDDLE.fullmatch(layer):
        kind, index, inner = match[1], int(match[2]), match[3]
        return f"middle_block.1.{inner}" if kind == "attentions" else _resnet(f"middle_block.{2 * index}", inner)
    match = BLOCK.fullmatch(layer)
    if not match:
        return FIRST_UNET.get(layer)
    side, block, kind, index, inner = match[1], int(match[2]), match[3], int(match[4]), match[5]
    blocks, size = ("input_blocks", "output_blocks")[side == "up"], _count("down_blocks.0.resnets.{}", names) + 1
    if kind == "downsamplers":
        return f"{blocks}.{size * (block + 1)}.0.op"
    if kind == "upsamplers":
        attended = f"up_blocks.{block}.attentions.0.norm.weight" in names
        return f"{blocks}.{size * (block + 1) - 1}.{1 + attended}.{inner}"
    place = f"{blocks}.{size * block + index + (side == 'down')}"
    return f"{place}.1.{inner}" if kind == "attentions" else _resnet(f"{place}.0", inner)


def _count(layer: str, names: Collection[str]) -> int:
    """How many there are of a resnet, numbered from 0."""
    return next(number for number in count() if f"{layer.format(number)}.norm1.weight" not in names)


def _resnet(place: str, inner: str) -> str:
    return f"{place}.{FIRST_RESNET[inner]}"


def vae_layer(layer: str, names: Collection[str]) -> str:
    """A VAE's layer. `names` are of all its weights."""
    side, _, rest = layer.partition(".")
    if match := MIDDLE.fullmatch(rest):
        kind, index, inner = match[1], int(match[2]), match[3]
        if kind == "attentions":
            return f"{side}.mid.attn_1.{FIRST_VAE_ATTENTION[inner]}"
        return f"{side}.mid.block_{index + 1}.{FIRST_VAE.get(inner, inner)}"
    if match := BLOCK.fullmatch(rest):
        way, block, kind, index, inner = match[1], int(match[2]), match[3], int(match[4]), match[5]
        place = (
            f"{side}.{way}.{block if way == 'down' else _count('decoder.up_blocks.{}.resnets.0', names) - 1 - block}"
        )
        if kind == "resnets":
            return f"{place}.block.{index}.{FIRST_VAE.get(inner, inner)}"
        return f"{place}.{kind.removesuffix('rs')}.{inner}"
    return f"{side}.{FIRST_VAE.get(rest, rest)}" if rest else layer
