"""What the operator's settings add to a model's own networks: a safety checker, a tiny VAE for previews."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, get_args

from darkroom_plugins.builtin.previews import TINY_VAE, open_tiny_vae
from darkroom_plugins.builtin.safety import PART, Safety, open_checker
from darkroom_plugins.request import PreviewMode

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from darkroom_plugins.contract import Family
    from darkroom_plugins.files import ModelFiles
    from darkroom_plugins.manager import Plugins
    from darkroom_server.config.settings import ModelSettings


def open_extras(
    family: Family, files: ModelFiles, settings: ModelSettings, plugins: Plugins
) -> tuple[Mapping[str, torch.nn.Module], list[str]]:
    """The networks that these settings add, without weights, by their names among the model's components; and why some
    cannot be had, each reason beginning with the key."""
    openers, problems = {}, []
    if settings.safety != "off" and Safety.name not in plugins.finishers:
        problems.append(f"safety: is {settings.safety!r}, but the plugin safety is blocked")
    elif settings.safety != "off":
        openers["safety"] = (PART, partial(open_checker, files))
    if settings.tiny_vae:
        openers["tiny_vae"] = (TINY_VAE, partial(open_tiny_vae, files, family))
    elif settings.default_preview_mode == "tiny-vae":
        problems.append("default_preview_mode: 'tiny-vae' needs tiny_vae to be set")
    opened = {}
    for key, (name, opener) in openers.items():
        try:
            opened[name] = opener()
        except (OSError, ValueError) as error:
            problems.append(f"{key}: {error}")
    return opened, problems


def preview_modes(family: Family, settings: ModelSettings, plugins: Plugins) -> tuple[PreviewMode, ...]:
    """The modes that a model offers: off alone where finds are blocked, as previews would show them."""
    if settings.safety == "block":
        return ("off",)
    its = {*family.info.preview_modes, *(["tiny-vae"] if TINY_VAE in family.hollow else [])}
    return tuple(m for m in get_args(PreviewMode) if m in its and (m == "off" or m in plugins.preview_decoders))
