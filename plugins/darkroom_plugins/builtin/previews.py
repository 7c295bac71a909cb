"""Preview decoders: a linear map to RGB, a tiny VAE, the model's own VAE."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from darkroom_plugins import hookimpl
from darkroom_plugins.contract import TINY_VAE, Family, PreviewDecoder
from darkroom_plugins.deferred import torch
from darkroom_plugins.files import MetaNetwork, MetaNetworks, ModelFiles, meta_network

darkroom_api_version = 1

FIT_PICTURES = 16
CLASS = "AutoencoderTiny"


def latent_rgb(model: Family) -> Callable[[torch.Tensor], torch.Tensor]:
    """A linear map from latents to RGB, fitted to the model's VAE.

    Pictures of random colour fields are encoded; the map is the least-squares fit from each latent position to the mean
    colour of its pixels.
    """
    height, width = (min(256, size) for size in (model.info.default_height, model.info.default_width))
    pictures = _colour_fields(FIT_PICTURES, height, width).to(model.device, model.dtype)
    latents = torch.cat([model.encode(picture[None]) for picture in pictures]).float()
    colours = torch.nn.functional.adaptive_avg_pool2d(pictures.float(), (latents.shape[-2], latents.shape[-1]))
    features = _with_bias_channel(latents).movedim(1, -1).flatten(0, -2).cpu()  # (positions, channels + 1)
    targets = colours.movedim(1, -1).flatten(0, -2).cpu()  # (positions, 3)
    weights = torch.linalg.lstsq(features, targets).solution.to(model.device)  # (channels + 1, 3)
    return lambda latents: torch.einsum("nchw,cd->ndhw", _with_bias_channel(latents.float()), weights)


def _with_bias_channel(latents: torch.Tensor) -> torch.Tensor:
    return torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1)


def _colour_fields(count: int, height: int, width: int) -> torch.Tensor:
    """(count, 3, height, width) in -1 to 1: 3 x 3 fields, in half of the pictures saturated, in half of any colour."""
    colours = torch.rand((count, 3, 3, 3), generator=torch.Generator().manual_seed(0)) * 2 - 1
    colours[: count // 2] = colours[: count // 2].sign()
    return torch.nn.functional.interpolate(colours, (height, width), mode="nearest")


def full_vae(model: Family) -> Callable[[torch.Tensor], torch.Tensor]:
    """The decoder of the model's VAE."""
    return model.decode


def tiny_vae(model: Family) -> Callable[[torch.Tensor], torch.Tensor]:
    """The decoder of the model's AutoencoderTiny."""
    config: Any = model.meta_components[TINY_VAE].config

    def decode(latents: torch.Tensor) -> torch.Tensor:
        network: Any = model.components[TINY_VAE]
        return network.decode(latents.to(model.dtype) / config.scaling_factor, return_dict=False)[0]  # type: ignore[no-any-return]

    return decode


def open_tiny_vae(files: ModelFiles, model: Family) -> MetaNetwork:
    """The AutoencoderTiny of these files, without its weights.

    :raises ValueError: it is no AutoencoderTiny, or for latents of other channels
    :raises OSError: its configuration cannot be read
    """
    config = files.config(TINY_VAE)
    if config.get("_class_name") != CLASS:
        raise ValueError(f"it holds {config.get('_class_name')}, not {CLASS}")
    channels, _, _ = model.latent_shape(model.info.default_width, model.info.default_height)
    if (its := config.get("latent_channels", 4)) != channels:
        raise ValueError(f"it takes latents of {its} channels; the model's have {channels}")
    return MetaNetwork(CLASS, config, lambda: _network(config))


def _network(config: Mapping[str, Any]) -> torch.nn.Module:
    from diffusers import AutoencoderTiny

    return meta_network(AutoencoderTiny, config)


def tiny_vae_components(model: Family, files: ModelFiles, settings: Any) -> Mapping[str, torch.nn.Module]:
    """The tiny VAE, if the model's settings name one."""
    if settings.tiny_vae is None:
        if settings.default_preview_mode == "tiny-vae":
            raise ValueError("default_preview_mode: 'tiny-vae' needs tiny_vae to be set")
        return {}
    try:
        return MetaNetworks({TINY_VAE: open_tiny_vae(files, model)})
    except (OSError, ValueError) as error:
        raise ValueError(f"tiny_vae: {error}") from error


@hookimpl
def darkroom_preview_decoders() -> Sequence[PreviewDecoder]:
    return [
        PreviewDecoder(name="latent-rgb", build=latent_rgb),
        PreviewDecoder(name="tiny-vae", build=tiny_vae, component=TINY_VAE, components=tiny_vae_components),
        PreviewDecoder(name="full-vae", build=full_vae, component="vae"),
    ]
