"""Tiny Stable Diffusion models with random weights, in diffusers' format: of the real architecture, and fast."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    ControlNetModel,
    DiffusionPipeline,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from darkroom_plugins.contract import Family
from darkroom_plugins.files import ModelFiles
from darkroom_server.models.holdings import load

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def tokenizer() -> CLIPTokenizer:
    """Byte-level, without merges: any text goes through, a token a letter."""
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def text_encoder(layers: int = 3) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=514,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    return CLIPTextModel(config)


def unet(**changes: Any) -> UNet2DConditionModel:
    arguments: dict[str, Any] = {
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
    }
    return UNet2DConditionModel(**{**arguments, **changes})


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.5,
    )


@torch.no_grad()
def randomise(network: nn.Module, gain: float = 1.0) -> None:
    """Random weights everywhere, also in the layers that start at zero, so that each has an effect."""
    for parameter in network.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, gain / parameter[0].numel() ** 0.5)
        else:
            parameter.add_(torch.randn_like(parameter) * 0.1)


def save_sd(folder: Path, seed: int = 0, scheduler: dict[str, Any] | None = None, **unet_changes: Any) -> Path:
    """A Stable Diffusion model of 32x32 pictures, in this folder."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = {"unet": unet(**unet_changes), "vae": vae(), "text_encoder": text_encoder()}
        for part in parts.values():
            randomise(part)
        randomise(parts["vae"].decoder.conv_out, gain=4.0)  # pictures of full contrast
    pipeline = StableDiffusionPipeline(
        **parts,
        tokenizer=tokenizer(),
        scheduler=PNDMScheduler(**{**NOISE, "skip_prk_steps": True, **(scheduler or {})}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def save_safety_checker(model: Path, seed: int = 0) -> Path:
    """Give a model a safety checker with random weights, which finds something in about every other picture."""
    width = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**width, "image_size": 32, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, text_config=width, projection_dim=8))
        randomise(checker)
        for thresholds in (checker.concept_embeds_weights, checker.special_care_embeds_weights):
            nn.init.constant_(thresholds, 2.0)  # more than any cosine
        nn.init.constant_(checker.concept_embeds_weights[:1], 0.21)
    checker.save_pretrained(model / "safety_checker")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(model / "feature_extractor")
    index = json.loads((model / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (model / "model_index.json").write_text(json.dumps(index))
    return model


def save_tiny_vae(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """An AutoencoderTiny for the latents of these models, with random weights, in diffusers' format."""
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    widths = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = AutoencoderTiny(**{**blocks, **widths, **changes})
        randomise(network)
    network.save_pretrained(folder)
    return folder


def load_family(kind: type[Family], folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A model as a plugin sees it, with its weights, on the CPU."""
    files = ModelFiles(folder)
    family = kind.open(files, torch.device("cpu"), dtype)
    load(family, files)
    return family


def save_controlnet(folder: Path, model: Path, seed: int, gain: float = 0.3, **changes: Any) -> Path:
    """A ControlNet for a model in diffusers' format, with random weights where a fresh one has zeros."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        denoiser = UNet2DConditionModel.from_pretrained(model / "unet")
        if denoiser.config.in_channels != 4:
            denoiser = UNet2DConditionModel.from_config({**denoiser.config, "in_channels": 4})
        net = ControlNetModel.from_unet(denoiser, conditioning_embedding_out_channels=(8, 16))
        randomise(net)
        for zero in (*net.controlnet_down_blocks, net.controlnet_mid_block):
            randomise(zero, gain)
        net.register_to_config(**changes)
    net.save_pretrained(folder)
    return folder


LORA_LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "proj_in")


def save_lora(
    file: Path,
    model: Path,
    seed: int,
    networks: tuple[str, ...] = ("unet",),
    rank: int = 4,
    layers_of_unet: tuple[str, ...] = LORA_LAYERS,
) -> Path:
    """A LoRA in diffusers' format for a model: of the UNet's attention and convolutions, and of text encoders."""
    pipe = DiffusionPipeline.from_pretrained(model)
    targets = {"unet": [*layers_of_unet]}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = {}
        for network in networks:
            part = getattr(pipe, network)
            where = targets.get(network, ["q_proj", "k_proj", "v_proj", "out_proj", "fc1"])
            part.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=False, target_modules=where))
            state = get_peft_model_state_dict(part)
            layers[network] = state if network == "unet" else convert_state_dict_to_diffusers(state)
        for state in layers.values():
            for tensor in state.values():
                torch.nn.init.normal_(tensor, 0, 0.7 / tensor[0].numel() ** 0.5)
    arguments = {f"{network}_lora_layers": state for network, state in layers.items()}
    type(pipe).save_lora_weights(file.parent, weight_name=file.name, **arguments)
    return file


def save_kohya(file: Path, lora: Path, alpha: float = 8.0) -> Path:
    """A LoRA of `save_lora` as kohya's trainer writes them: other names, and an alpha for each layer."""
    converted: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(lora).items():
        network, _, rest = name.partition(".")
        layer, _, kind = rest.replace("lora_linear_layer.", "lora_").rpartition(".lora_")
        text = "text_model." if network != "unet" and not layer.startswith("text_model") else ""
        prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[network] + (text + layer).replace(".", "_")
        side = {"A.weight": "down", "down.weight": "down", "B.weight": "up", "up.weight": "up"}[kind]
        converted[f"{prefix}.lora_{side}.weight"] = tensor
        converted[f"{prefix}.alpha"] = torch.tensor(alpha)
    save_file(converted, file)
    return file
