"""diffusers' UNet2DConditionModel, and the ControlNets for it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from darkroom_plugins.files.structures.network import Config, Kinds, Network

UNET: Config = {
    "in_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "attention_head_dim": 8,
    "use_linear_projection": False,
    "addition_embed_type": None,
    "projection_class_embeddings_input_dim": None,
}
# Options of diffusers' UNets that shapes depend on otherwise than is covered, with the values that change nothing.
PLAIN: Config = {
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
    "attention_type": "default",
    "class_embeddings_concat": False,
    "cross_attention_norm": None,
}


class _UNet:
    """The layers that UNet2DConditionModel and ControlNetModel share."""

    def __init__(self, network: Network, config: Config) -> None:
        self.network, self.config = network, config
        self.channels: Sequence[int] = config["block_out_channels"]
        count = len(self.channels)
        self.groups: int = config["norm_num_groups"]
        self.time = config.get("time_embedding_dim") or 4 * self.channels[0]
        self.heads = _each(config["attention_head_dim"], count)
        self.cross = _each(config["cross_attention_dim"], count)
        self.depths = _each(config["transformer_layers_per_block"], count)
        self.layers = _each(config["layers_per_block"], count)
        self.only_cross = _each(config["only_cross_attention"], count)
        if any(config.get(key, plain) != plain for key, plain in PLAIN.items()):
            raise NotImplementedError
        if not len(config["down_block_types"]) == len(config.get("up_block_types", self.channels)) == count:
            raise ValueError("the blocks have no channels")

    def inputs(self) -> None:
        """Before the blocks."""
        network, config, first = self.network, self.config, self.channels[0]
        network.conv("conv_in", config["in_channels"], first, config.get("conv_in_kernel", 3))
        network.linear("time_embedding.linear_1", first, self.time)
        network.linear("time_embedding.linear_2", self.time, self.time)
        if (width := config.get("time_cond_proj_dim")) is not None:
            network.linear("time_embedding.cond_proj", width, first, bias=False)
        if config["addition_embed_type"] == "text_time":
            network.linear("add_embedding.linear_1", config["projection_class_embeddings_input_dim"], self.time)
            network.linear("add_embedding.linear_2", self.time, self.time)
        elif config["addition_embed_type"] is not None:
            raise NotImplementedError

    def down(self) -> None:
        """The down blocks."""
        inputs = self.channels[0]
        for block, (kind, channels) in enumerate(zip(self.config["down_block_types"], self.channels, strict=True)):
            name = f"down_blocks.{block}"
            for layer in range(self.layers[block]):
                self.network.resnet(f"{name}.resnets.{layer}", inputs, channels, self.groups, self.time)
                inputs = channels
                if _attends(kind, "CrossAttnDownBlock2D", "DownBlock2D"):
                    self._attention(f"{name}.attentions.{layer}", block, self.only_cross[block])
            if block < len(self.channels) - 1:
                self.network.conv(f"{name}.downsamplers.0.conv", channels, channels)

    def middle(self) -> None:
        """The mid block, if there is one."""
        if self.config["mid_block_type"] is None and "up_block_types" in self.config:  # a ControlNet needs one
            return
        if self.config["mid_block_type"] != "UNetMidBlock2DCrossAttn":
            raise NotImplementedError
        width = self.channels[-1]
        for layer in range(2):
            self.network.resnet(f"mid_block.resnets.{layer}", width, width, self.groups, self.time)
        self._attention("mid_block.attentions.0", -1, False)

    def up(self) -> None:
        """The up blocks."""
        before = self.channels[-1]
        depths = self.config["reverse_transformer_layers_per_block"]
        for place, kind in enumerate(self.config["up_block_types"]):
            block, name = len(self.channels) - 1 - place, f"up_blocks.{place}"
            channels, below = self.channels[block], self.channels[max(block - 1, 0)]
            for layer in range(self.layers[block] + 1):
                skipped = below if layer == self.layers[block] else channels
                self.network.resnet(f"{name}.resnets.{layer}", before + skipped, channels, self.groups, self.time)
                before = channels
                if _attends(kind, "CrossAttnUpBlock2D", "UpBlock2D"):
                    depth = None if depths is None else depths[place]
                    self._attention(f"{name}.attentions.{layer}", block, self.only_cross[block], depth)
            if block > 0:
                self.network.conv(f"{name}.upsamplers.0.conv", channels, channels)

    def _attention(self, name: str, block: int, only_cross: bool, depth: int | None = None) -> None:
        """diffusers' Transformer2DModel."""
        network, channels, cross = self.network, self.channels[block], self.cross[block]
        width = self.heads[block] * (channels // self.heads[block])
        network.norm(f"{name}.norm", channels, self.groups)
        self._projection(f"{name}.proj_in", channels, width)
        own = cross if only_cross else width
        for layer in range(self.depths[block] if depth is None else depth):
            inner = f"{name}.transformer_blocks.{layer}"
            for norm in ("norm1", "norm2", "norm3"):
                network.norm(f"{inner}.{norm}", width)
            for attention, context in (("attn1", own), ("attn2", cross)):
                network.linear(f"{inner}.{attention}.to_q", width, width, bias=False)
                for key in ("to_k", "to_v"):
                    network.linear(f"{inner}.{attention}.{key}", context, width, bias=False)
                network.linear(f"{inner}.{attention}.to_out.0", width, width)
            network.linear(f"{inner}.ff.net.0.proj", width, 8 * width)  # GEGLU
            network.linear(f"{inner}.ff.net.2", 4 * width, width)
        self._projection(f"{name}.proj_out", width, channels)

    def _projection(self, name: str, inputs: int, outputs: int) -> None:
        if self.config["use_linear_projection"]:
            self.network.linear(name, inputs, outputs)
        else:
            self.network.conv(name, inputs, outputs, 1)


def _unet(network: Network, config: Config) -> None:
    unet = _UNet(network, config)
    unet.inputs()
    unet.down()
    unet.middle()
    unet.up()
    network.norm("conv_norm_out", unet.channels[0], unet.groups)
    network.conv("conv_out", unet.channels[0], config["out_channels"], config["conv_out_kernel"])


def _controlnet(network: Network, config: Config) -> None:
    unet, maps = _UNet(network, config), config["conditioning_embedding_out_channels"]
    unet.inputs()
    network.conv("controlnet_cond_embedding.conv_in", config["conditioning_channels"], maps[0])
    for place, (inputs, outputs) in enumerate(pairwise(maps)):
        network.conv(f"controlnet_cond_embedding.blocks.{2 * place}", inputs, inputs)
        network.conv(f"controlnet_cond_embedding.blocks.{2 * place + 1}", inputs, outputs)
    network.conv("controlnet_cond_embedding.conv_out", maps[-1], unet.channels[0])
    unet.down()
    unet.middle()
    last = len(unet.channels) - 1
    skips = [unet.channels[0]]
    for block, channels in enumerate(unet.channels):
        skips += [channels] * (unet.layers[block] + (block < last))
    for place, channels in enumerate(skips):
        network.conv(f"controlnet_down_blocks.{place}", channels, channels, 1)
    network.conv("controlnet_mid_block", unet.channels[-1], unet.channels[-1], 1)


def _attends(kind: str, with_attention: str, without: str) -> bool:
    if kind not in (with_attention, without):
        raise NotImplementedError
    return kind == with_attention


def _each(value: Any, count: int) -> Sequence[Any]:
    """An option by block."""
    if isinstance(value, int):
        return [value] * count
    if len(value) != count or not all(isinstance(each, int) for each in value):
        raise NotImplementedError
    return value  # type: ignore[no-any-return]


KINDS: Kinds = {
    "UNet2DConditionModel": (
        _unet,
        {
            **UNET,
            "out_channels": 4,
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
            "conv_in_kernel": 3,
            "conv_out_kernel": 3,
            "reverse_transformer_layers_per_block": None,
            "time_embedding_dim": None,
            "time_cond_proj_dim": None,
        },
    ),
    "ControlNetModel": (
        _controlnet,
        {**UNET, "conditioning_channels": 3, "conditioning_embedding_out_channels": [16, 32, 96, 256]},
    ),
}
