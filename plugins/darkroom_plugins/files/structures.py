"""Names and shapes of a network's weights, by its configuration: as the classes of diffusers and transformers make
them, which take seconds to import. Covers the networks of Stable Diffusion 1.x, 2.x and XL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Mapping[str, Shape]  # by the weights' names
Config: TypeAlias = Mapping[str, Any]


def structure(kind: str, config: Config) -> Shapes | None:
    """The weights of a network of this class; None if the class, or an option of it, is not covered here."""
    if kind not in KINDS:
        return None
    network = Network()
    try:
        KINDS[kind][0](network, with_defaults(kind, config))
    except Exception:  # the class says what is wrong with the configuration
        return None
    return network


def with_defaults(kind: str, config: Config) -> Config:
    """A configuration with the defaults of its class, where the class is covered: files of older versions leave out
    what came later."""
    return {**KINDS[kind][1], **config} if kind in KINDS else config


class Network(dict[str, Shape]):
    """The shapes of layers that are added."""

    def linear(self, name: str, inputs: int, outputs: int, bias: bool = True) -> None:
        """A linear layer."""
        self[f"{name}.weight"] = (outputs, inputs)
        if bias:
            self[f"{name}.bias"] = (outputs,)

    def conv(self, name: str, inputs: int, outputs: int, kernel: int = 3, bias: bool = True) -> None:
        """A convolution."""
        self[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
        if bias:
            self[f"{name}.bias"] = (outputs,)

    def norm(self, name: str, channels: int, groups: int = 1) -> None:
        """A layer or group norm."""
        if channels % groups:
            raise ValueError("the groups do not divide the channels")
        self[f"{name}.weight"] = self[f"{name}.bias"] = (channels,)

    def resnet(self, name: str, inputs: int, outputs: int, groups: int, time: int | None = None) -> None:
        """diffusers' ResnetBlock2D."""
        self.norm(f"{name}.norm1", inputs, groups)
        self.conv(f"{name}.conv1", inputs, outputs)
        if time is not None:
            self.linear(f"{name}.time_emb_proj", time, outputs)
        self.norm(f"{name}.norm2", outputs, groups)
        self.conv(f"{name}.conv2", outputs, outputs)
        if inputs != outputs:
            self.conv(f"{name}.conv_shortcut", inputs, outputs, 1)


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


def _vae(network: Network, config: Config) -> None:
    channels, latents, layers = config["block_out_channels"], config["latent_channels"], config["layers_per_block"]
    last, before, groups = len(channels) - 1, channels[0], config["norm_num_groups"]
    if not len(config["down_block_types"]) == len(config["up_block_types"]) == len(channels):
        raise ValueError("the blocks have no channels")
    if {*config["down_block_types"], *config["up_block_types"]} != {"DownEncoderBlock2D", "UpDecoderBlock2D"}:
        raise NotImplementedError
    network.conv("encoder.conv_in", config["in_channels"], before)
    for block, width in enumerate(channels):
        for layer in range(layers):
            network.resnet(f"encoder.down_blocks.{block}.resnets.{layer}", before, width, groups)
            before = width
        if block < last:
            network.conv(f"encoder.down_blocks.{block}.downsamplers.0.conv", width, width)
    for side in ("encoder", "decoder"):
        for layer in range(2):
            network.resnet(f"{side}.mid_block.resnets.{layer}", channels[-1], channels[-1], groups)
        if config["mid_block_add_attention"]:
            network.norm(f"{side}.mid_block.attentions.0.group_norm", channels[-1], groups)
            for name in ("to_q", "to_k", "to_v", "to_out.0"):
                network.linear(f"{side}.mid_block.attentions.0.{name}", channels[-1], channels[-1])
    network.norm("encoder.conv_norm_out", channels[-1], groups)
    network.conv("encoder.conv_out", channels[-1], 2 * latents)
    network.conv("decoder.conv_in", latents, before)
    for place, width in enumerate(reversed(channels)):
        for layer in range(layers + 1):
            network.resnet(f"decoder.up_blocks.{place}.resnets.{layer}", before, width, groups)
            before = width
        if place < last:
            network.conv(f"decoder.up_blocks.{place}.upsamplers.0.conv", width, width)
    network.norm("decoder.conv_norm_out", before, groups)
    network.conv("decoder.conv_out", before, config["out_channels"])
    if config["use_quant_conv"]:
        network.conv("quant_conv", 2 * latents, 2 * latents, 1)
    if config["use_post_quant_conv"]:
        network.conv("post_quant_conv", latents, latents, 1)


def _tiny_vae(network: Network, config: Config) -> None:
    names = (f"encoder.layers.{place}" for place in range(1000))
    widths = config["encoder_block_out_channels"]
    for block, (count, width) in enumerate(zip(config["num_encoder_blocks"], widths, strict=True)):
        network.conv(next(names), config["in_channels"] if block == 0 else width, width, bias=block == 0)
        for _ in range(count):
            _tiny_block(network, next(names), width, width)
    network.conv(next(names), widths[-1], config["latent_channels"])
    names = (f"decoder.layers.{place}" for place in range(1000))
    widths = config["decoder_block_out_channels"]
    network.conv(next(names), config["latent_channels"], widths[0])
    next(names)  # an activation
    for block, (count, width) in enumerate(zip(config["num_decoder_blocks"], widths, strict=True)):
        for _ in range(count):
            _tiny_block(network, next(names), width, width)
        last = block == len(widths) - 1
        if not last:
            next(names)  # upsampling
        network.conv(next(names), width, config["out_channels"] if last else width, bias=last)


def _tiny_block(network: Network, name: str, inputs: int, outputs: int) -> None:
    for place in (0, 2, 4):
        network.conv(f"{name}.conv.{place}", inputs, outputs)


def _clip_text(network: Network, config: Config) -> None:
    _clip_layers(network, "text_model", config)
    network["text_model.embeddings.token_embedding.weight"] = (config["vocab_size"], config["hidden_size"])
    network["text_model.embeddings.position_embedding.weight"] = (
        config["max_position_embeddings"],
        config["hidden_size"],
    )
    network.norm("text_model.final_layer_norm", config["hidden_size"])


def _clip_text_with_projection(network: Network, config: Config) -> None:
    _clip_text(network, config)
    network.linear("text_projection", config["hidden_size"], config["projection_dim"], bias=False)


def _clip_layers(network: Network, name: str, config: Config) -> None:
    width, inner = config["hidden_size"], config["intermediate_size"]
    if width % config["num_attention_heads"]:
        raise ValueError("the heads do not divide the width")
    for place in range(config["num_hidden_layers"]):
        layer = f"{name}.encoder.layers.{place}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            network.linear(f"{layer}.self_attn.{part}", width, width)
        network.norm(f"{layer}.layer_norm1", width)
        network.norm(f"{layer}.layer_norm2", width)
        network.linear(f"{layer}.mlp.fc1", width, inner)
        network.linear(f"{layer}.mlp.fc2", inner, width)


def _safety_checker(network: Network, config: Config) -> None:
    vision = {**VISION, **(config["vision_config"] or {}), **(config["vision_config_dict"] or {})}
    width, size, name = vision["hidden_size"], vision["patch_size"], "vision_model.vision_model"
    _clip_layers(network, name, vision)
    network[f"{name}.embeddings.class_embedding"] = (width,)
    network.conv(f"{name}.embeddings.patch_embedding", vision["num_channels"], width, size, bias=False)
    network[f"{name}.embeddings.position_embedding.weight"] = ((vision["image_size"] // size) ** 2 + 1, width)
    network.norm(f"{name}.pre_layrnorm", width)
    network.norm(f"{name}.post_layernorm", width)
    network.linear("visual_projection", width, config["projection_dim"], bias=False)
    for count, concepts in ((17, "concept"), (3, "special_care")):
        network[f"{concepts}_embeds"] = (count, config["projection_dim"])
        network[f"{concepts}_embeds_weights"] = (count,)


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


# The classes' defaults of options that shapes depend on.
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
TEXT: Config = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
}
VISION: Config = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
}
Build: TypeAlias = Callable[[Network, Config], None]
KINDS: Mapping[str, tuple[Build, Config]] = {
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
    "AutoencoderKL": (
        _vae,
        {
            "in_channels": 3,
            "out_channels": 3,
            "down_block_types": ["DownEncoderBlock2D"],
            "up_block_types": ["UpDecoderBlock2D"],
            "block_out_channels": [64],
            "layers_per_block": 1,
            "latent_channels": 4,
            "norm_num_groups": 32,
            "use_quant_conv": True,
            "use_post_quant_conv": True,
            "mid_block_add_attention": True,
        },
    ),
    "AutoencoderTiny": (
        _tiny_vae,
        {
            "in_channels": 3,
            "out_channels": 3,
            "encoder_block_out_channels": [64] * 4,
            "decoder_block_out_channels": [64] * 4,
            "num_encoder_blocks": [1, 3, 3, 3],
            "num_decoder_blocks": [3, 3, 3, 1],
            "latent_channels": 4,
        },
    ),
    "CLIPTextModel": (_clip_text, TEXT),
    "CLIPTextModelWithProjection": (_clip_text_with_projection, TEXT),
    "StableDiffusionSafetyChecker": (
        _safety_checker,
        {"projection_dim": 512, "vision_config": None, "vision_config_dict": None},
    ),
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
