"""Adapters that PEFT makes of tiny models, in each of its methods, and its merged weights."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model

LINEAR = ["to_q", "to_k", "to_out.0", "ff.net.0.proj", "time_emb_proj"]
ALL = [*LINEAR, "conv1", "conv_shortcut", "proj_in", "downsamplers.0.conv", "upsamplers.0.conv", "conv_in", "conv_out"]
METHODS: dict[str, Callable[[], Any]] = {
    "LoRA": lambda: LoraConfig(r=4, lora_alpha=6, target_modules=ALL, init_lora_weights=False),
    "rank-stabilised": lambda: LoraConfig(
        r=4, lora_alpha=3, target_modules=ALL, init_lora_weights=False, use_rslora=True
    ),
    "ranks by pattern": lambda: LoraConfig(
        r=4,
        lora_alpha=4,
        target_modules=ALL,
        init_lora_weights=False,
        rank_pattern={"to_q": 2, r"mid_block\..*conv1": 3},
        alpha_pattern={"to_q": 5},
    ),
    "DoRA": lambda: LoraConfig(r=4, lora_alpha=6, target_modules=ALL, init_lora_weights=False, use_dora=True),
    "LoHa": lambda: LoHaConfig(r=3, alpha=5, target_modules=ALL, init_weights=False),
    "LoHa with cores": lambda: LoHaConfig(
        r=3, alpha=5, target_modules=ALL, init_weights=False, use_effective_conv2d=True
    ),
    "LoKr": lambda: LoKrConfig(r=2, alpha=2, target_modules=ALL, init_weights=False),
    "LoKr of matrices": lambda: LoKrConfig(r=64, alpha=32, target_modules=ALL, init_weights=False),
    "LoKr, decomposed": lambda: LoKrConfig(
        r=1, alpha=2, target_modules=ALL, init_weights=False, decompose_both=True, use_effective_conv2d=True
    ),
}


@torch.no_grad()
def adapted(folder: Path, method: str, seed: int = 0) -> PeftModel:
    """The UNet with an adapter of PEFT, random everywhere."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(UNet2DConditionModel.from_pretrained(folder / "unet"), METHODS[method]())
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
            elif "lora_" in name or "hada_" in name or "lokr_" in name:
                parameter.normal_(0, 0.6 if "lokr_t" in name or "hada_" in name else 0.3)
    return model


def merged(model: PeftModel, weight: float = 1.0) -> UNet2DConditionModel:
    """PEFT's merged network, the adapter scaled as diffusers does it."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(weight)
    return model.merge_and_unload()


def saved(model: PeftModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder / "adapter_model.safetensors"
