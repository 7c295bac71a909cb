"""Single-file checkpoints of Stable Diffusion 1.x, 2.x and XL: all networks in one file, under the original names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from darkroom_plugins.files.original_names import unet_layer, vae_layer
from darkroom_plugins.files.safetensors_files import opened, read_shapes

if TYPE_CHECKING:
    import torch

    from darkroom_plugins.files.structures.network import Shape, Shapes

PREFIXES = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0."),
    "text_encoder_2": ("conditioner.embedders.1.",),
}
# What the names of layers begin with; others are ignored.
LAYERS = {
    "unet": ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "label_emb.", "out."),
    "vae": ("encoder.", "decoder.", "quant_conv.", "post_quant_conv."),
}
OPEN_CLIP = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
}
OPEN_CLIP_LAYERS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
TRANSFORMER = re.compile(r"(?:cond_stage_model|conditioner\.embedders\.\d)\.transformer\.(.+)")
RESBLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
# Stable Diffusion 2 takes the last but one layer of its text encoder, and no projection.
UNUSED = ("cond_stage_model.model.transformer.resblocks.23.", "cond_stage_model.model.text_projection")
ARCHITECTURES = {  # by a prefix of tensor names that others do not have
    "conditioner.": "Stable Diffusion XL",
    "cond_stage_model.model.": "Stable Diffusion 2.x",
    "cond_stage_model.transformer.": "Stable Diffusion 1.x",
}


# What marks an option of the scheduler: a tensor's name, or a text in the metadata (Stability AI's ModelSpec).
TENSORS = {"v_pred": ("prediction_type", "v_prediction"), "ztsnr": ("rescale_betas_zero_snr", True)}
METADATA = {
    "modelspec.prediction_type": {
        **dict.fromkeys(("v", "v_prediction", "v-prediction", "velocity"), "v_prediction"),
        **dict.fromkeys(("epsilon", "eps"), "epsilon"),
        "sample": "sample",
    },
    "modelspec.architecture": {"stable-diffusion-v2-768-v": "v_prediction", "stable-diffusion-v2-512": "epsilon"},
}
EDM = ("edm_mean", "edm_vpred.sigma_max")


def stated_options(file: Path) -> dict[str, dict[Any, str]]:
    """What a checkpoint says of itself: for an option of the scheduler each value, and where it says so.

    :raises OSError, ValueError: the file cannot be read, or says what is not supported
    """
    found: dict[str, dict[Any, str]] = {}
    with opened(file) as tensors:
        names, metadata = set(tensors.keys()), tensors.metadata() or {}
    if edm := names.intersection(EDM):
        raise ValueError(f"{file.name} is of the EDM formulation (it has {min(edm)}), which is not supported")
    for name in names & TENSORS.keys():
        option, value = TENSORS[name]
        found.setdefault(option, {})[value] = f"tensor {name}"
    for key in METADATA.keys() & metadata.keys():
        text, known = metadata[key].strip().lower(), METADATA[key]
        if text in known:
            found.setdefault("prediction_type", {})[known[text]] = key
        elif key == "modelspec.prediction_type" and text:
            raise ValueError(f"prediction_type: {file.name} says {text!r} in {key}, which is not known")
    return found


class Source(NamedTuple):
    """Where a weight is in a file."""

    name: str
    third: int | None = None  # query, key and value are one matrix: which part of it
    transposed: bool = False
    convolution: bool = False  # of 1 x 1 pixels, for a linear layer

    def shape(self, shape: Shape) -> Shape:
        """The weight's, by that of the file's tensor."""
        if self.third is not None:
            return (shape[0] // 3, *shape[1:])
        if self.convolution:
            return shape[:2]
        return shape[::-1] if self.transposed else shape

    def tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """The weight, by the file's tensor."""
        if self.third is not None:
            return tensor.chunk(3)[self.third]
        if self.convolution:
            return tensor[:, :, 0, 0]
        return tensor.T if self.transposed else tensor


def checkpoint_sources(file: Path, part: str, wanted: Shapes) -> dict[str, Source]:
    """The weights of a part under diffusers' names, and those of its layers that are not wanted.

    :raises OSError, ValueError: the file cannot be read, or lacks the part or a weight of it
    """
    if part not in PREFIXES:
        raise ValueError(f"a single-file checkpoint holds {', '.join(PREFIXES)}, and no {part}")
    names = read_shapes([file], PREFIXES[part])
    if not names:
        raise ValueError(f"{file} has no weights of the {part}")
    if part.startswith("text_encoder"):
        return _text_sources(names, part)
    return _layer_sources(file, part, names, wanted)


def vae_sources(file: Path, wanted: Shapes) -> dict[str, Source]:
    """The weights of a VAE file, under diffusers' or the original names, or of a checkpoint's VAE.

    :raises OSError, ValueError: the file cannot be read, or lacks a weight
    """
    shapes = read_shapes([file])
    if any(name.startswith("encoder.down_blocks.") for name in shapes):
        return {name: Source(name) for name in shapes}
    return _layer_sources(file, "vae", shapes, wanted)


def _layer_sources(file: Path, part: str, shapes: Shapes, wanted: Shapes) -> dict[str, Source]:
    """`shapes`: of the file's tensors."""
    prefix = next((each for each in PREFIXES[part] if any(name.startswith(each) for name in shapes)), "")
    names = {name.removeprefix(prefix): name for name in shapes if name.startswith(prefix)}
    found, used = {}, set()
    for name, shape in wanted.items():
        layer, _, kind = name.rpartition(".")
        if part == "vae":
            original: str | None = vae_layer(layer, wanted)
        else:
            original = unet_layer(layer, wanted)
        original = f"{original or layer}.{kind}"
        if original not in names:
            raise ValueError(f"{file} lacks {original!r} among the weights of the {part}")
        used.add(original)
        convolution = part == "vae" and len(shape) == 2 and shapes[names[original]][2:] == (1, 1)
        found[name] = Source(names[original], convolution=convolution)
    more = (name for name in names.keys() - used if name.startswith(LAYERS[part]))
    return found | {name: Source(names[name]) for name in more}


def _text_sources(names: Iterable[str], part: str) -> dict[str, Source]:
    prefixes = tuple(f"{each}model." for each in PREFIXES[part])
    prefix = next((each for each in prefixes for name in names if name.startswith(each)), None)
    found: dict[str, Source] = {}
    if prefix is None:
        return {match[1]: Source(name) for name in names if (match := TRANSFORMER.fullmatch(name))}
    for name in names:
        if not name.startswith(UNUSED):
            for new, source in _open_clip(name, name.removeprefix(prefix)):
                found[new] = source
    return found


def _open_clip(name: str, plain: str) -> Iterator[tuple[str, Source]]:
    """The weights of a tensor of OpenCLIP's text model; `plain` is its name without prefix."""
    if plain in OPEN_CLIP:
        yield OPEN_CLIP[plain], Source(name, transposed=plain == "text_projection")
    elif match := RESBLOCK.fullmatch(plain):
        layer, inner = f"text_model.encoder.layers.{match[1]}", match[2]
        if inner.startswith("attn.in_proj_"):
            kind = inner.removeprefix("attn.in_proj_")
            for third, letter in enumerate("qkv"):
                yield f"{layer}.self_attn.{letter}_proj.{kind}", Source(name, third)
        else:
            module, _, kind = inner.rpartition(".")
            yield f"{layer}.{OPEN_CLIP_LAYERS.get(module, module)}.{kind}", Source(name)


def architecture(file: Path) -> str:
    """The architecture of a checkpoint, by its tensor names."""
    names = read_shapes([file])
    kinds = (kind for prefix, kind in ARCHITECTURES.items() if any(name.startswith(prefix) for name in names))
    return next(kinds, "no Stable Diffusion that is known")
