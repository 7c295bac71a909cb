"""The names and shapes that are told by configurations are those of the classes."""

import inspect
from typing import Any

import diffusers
import pytest
import transformers
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

from darkroom_plugins.files import meta_network, shapes_of
from darkroom_plugins.files.model_files import differences
from darkroom_plugins.files.structures import KINDS, structure, with_defaults

SD2 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
XL = {
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SMALL_XL = {**XL, "block_out_channels": [32, 64, 64], "transformer_layers_per_block": [1, 1, 2]}
NET_XL = {key: value for key, value in SMALL_XL.items() if key != "up_block_types"}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}
BIG_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "projection_dim": 1280}
VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 14,
}
UNET, NET = diffusers.UNet2DConditionModel, diffusers.ControlNetModel
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "SD 1": (UNET, {"cross_attention_dim": 768}),
    "SD 2": (UNET, SD2),
    "SDXL": (UNET, XL),
    "heads that do not divide the width": (UNET, {"attention_head_dim": 7}),
    "embedded guidance": (UNET, {**SMALL_XL, "time_cond_proj_dim": 256}),
    "no mid block": (UNET, {**SMALL_XL, "mid_block_type": None}),
    "layers by block": (UNET, {**SMALL_XL, "layers_per_block": [1, 2, 3], "only_cross_attention": [True, False, True]}),
    "depths of the up blocks": (UNET, {**SMALL_XL, "reverse_transformer_layers_per_block": [3, 2, 1]}),
    "other kernels": (UNET, {**SMALL_XL, "conv_in_kernel": 1, "conv_out_kernel": 5, "time_embedding_dim": 48}),
    "a ControlNet": (NET, {"cross_attention_dim": 768}),
    "a ControlNet for SDXL": (NET, NET_XL),
    "a small ControlNet": (NET, {**NET_XL, "conditioning_embedding_out_channels": [8, 16], "layers_per_block": 1}),
    "a VAE": (diffusers.AutoencoderKL, VAE),
    "a VAE by defaults": (diffusers.AutoencoderKL, {}),
    "a VAE without convolutions of latents": (
        diffusers.AutoencoderKL,
        {**VAE, "use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": False},
    ),
    "a tiny VAE": (diffusers.AutoencoderTiny, {}),
    "a tinier VAE": (
        diffusers.AutoencoderTiny,
        {
            "num_encoder_blocks": [1, 2],
            "encoder_block_out_channels": [8, 8],
            "num_decoder_blocks": [1, 2, 1],
            "decoder_block_out_channels": [8, 8, 8],
        },
    ),
    "CLIP-L": (transformers.CLIPTextModel, {"hidden_size": 768, "intermediate_size": 3072}),
    "bigG": (transformers.CLIPTextModelWithProjection, {**BIG_G, "num_hidden_layers": 3}),
    "a safety checker": (StableDiffusionSafetyChecker, {"vision_config": VISION, "projection_dim": 768}),
    "one of the first": (StableDiffusionSafetyChecker, {"vision_config_dict": VISION}),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_class(case: str) -> None:
    kind, config = CASES[case]
    found, network = structure(kind.__name__, config), shapes_of(meta_network(kind, config))
    assert found is not None
    assert len(found) == len(network)
    assert differences(network, found) == []


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("UNet2DConditionModel", {"norm_num_groups": 7}),
        ("UNet2DConditionModel", {"down_block_types": ["AttnDownBlock2D"] * 4}),
        ("UNet2DConditionModel", {"class_embed_type": "timestep"}),
        ("UNet2DConditionModel", {"block_out_channels": [320]}),
        ("ControlNetModel", {"mid_block_type": None}),
        ("AutoencoderKL", {"down_block_types": ["Other"]}),
        ("CLIPTextModel", {"hidden_size": 100}),
        ("AutoencoderDC", {}),
    ],
)
def test_leaves_to_the_class_what_is_not_covered(kind: str, config: dict[str, Any]) -> None:
    assert structure(kind, config) is None


@pytest.mark.parametrize("kind", [kind for kind in KINDS if hasattr(diffusers, kind)])
def test_what_a_file_leaves_out_is_as_in_the_class(kind: str) -> None:
    arguments = inspect.signature(getattr(diffusers, kind).__init__).parameters
    for name, value in with_defaults(kind, {}).items():
        default = arguments[name].default
        assert (list(default) if isinstance(default, tuple) else default) == value, name
