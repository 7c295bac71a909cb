"""Names of a model's layers in LoRA files: diffusers', those of the first code of Stable Diffusion, with dots or
underscores, with any trainer's prefix."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from darkroom_plugins.files.original_names import unet_layer
from darkroom_plugins.files.structures.network import Shapes

EMBEDDINGS = ("token_embedding", "position_embedding", "class_embedding")  # whose weights are no layer's
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


class LayerNames:
    """The layers of a model's networks by their names in LoRA files."""

    def __init__(self, networks: Mapping[str, Shapes]) -> None:
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


def _names(part: str, weights: Shapes) -> Iterator[tuple[str, str]]:
    for weight in weights:
        layer = weight.removesuffix(".weight")
        if layer != weight and not layer.endswith(EMBEDDINGS):
            for name in _spellings(part, layer, weights):
                yield name.replace(".", "_"), layer


def _spellings(part: str, layer: str, weights: Shapes) -> Iterator[str]:
    yield layer
    if layer.endswith(".to_out.0"):
        yield layer.removesuffix(".0")  # of attention processors
    if part != "unet":
        yield f"text_model.{layer}"  # before transformers 5
        yield layer.removeprefix("text_model.")
    elif first := unet_layer(layer, weights):
        yield first
