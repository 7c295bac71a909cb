"""diffusers' AutoencoderKL and AutoencoderTiny."""

from __future__ import annotations

from darkroom_plugins.files.structures.network import Config, Kinds, Network


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


KINDS: Kinds = {
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
}
