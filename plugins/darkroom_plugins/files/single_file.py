"""Single-file checkpoints of Stable Diffusion 1.x, 2.x and XL: all networks in one file, under the original names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from darkroom_plugins.files.safetensors_files import Tensors, opened, read_tensors

PREFIXES = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0."),
    "text_encoder_2": ("conditioner.embedders.1.",),
}
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


def read_checkpoint(file: Path, part: str, config: Mapping[str, Any], device: str = "cpu") -> Tensors:
    """The weights of a part under diffusers' names (see `read_tensors` for the device).

    :raises OSError, ValueError: the file cannot be read, or lacks the part
    """
    if part not in PREFIXES:
        raise ValueError(f"a single-file checkpoint holds {', '.join(PREFIXES)}, and no {part}")
    tensors = read_tensors([file], device, PREFIXES[part])
    if not tensors:
        raise ValueError(f"{file} has no weights of the {part}")
    try:
        return _converted(tensors, part, config)
    except KeyError as error:
        raise ValueError(f"{file} lacks {error} among the weights of the {part}") from error


def read_vae(file: Path, config: Mapping[str, Any], device: str = "cpu") -> Tensors:
    """The weights of a VAE file, under diffusers' or the original names, or of a checkpoint's VAE."""
    tensors = read_tensors([file], device)
    if any(name.startswith("encoder.down_blocks.") for name in tensors):
        return tensors
    return _converters().convert_ldm_vae_checkpoint(tensors, config)  # type: ignore[no-any-return]


def architecture(file: Path) -> str:
    """The architecture of a checkpoint, by its tensor names."""
    names = read_tensors([file], "meta")
    kinds = (kind for prefix, kind in ARCHITECTURES.items() if any(name.startswith(prefix) for name in names))
    return next(kinds, "no Stable Diffusion that is known")


def _converted(tensors: Tensors, part: str, config: Mapping[str, Any]) -> Tensors:
    convert = _converters()
    if part == "unet":
        return convert.convert_ldm_unet_checkpoint(tensors, config)  # type: ignore[no-any-return]
    if part == "vae":
        return convert.convert_ldm_vae_checkpoint(tensors, config)  # type: ignore[no-any-return]
    for prefix in (f"{each}model." for each in PREFIXES[part]):
        if any(name.startswith(prefix) for name in tensors):
            network = SimpleNamespace(config=SimpleNamespace(hidden_size=config["hidden_size"]))
            return convert.convert_open_clip_checkpoint(network, tensors, prefix)  # type: ignore[no-any-return]
    return convert.convert_ldm_clip_checkpoint(tensors)  # type: ignore[no-any-return]


def _converters() -> Any:
    """Diffusers' module, which takes a second to import."""
    from diffusers.loaders import single_file_utils

    return single_file_utils
