"""Optional networks of a model, configured by settings and opened by plugins: safety checker, tiny VAE for previews."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from darkroom_plugins.contract import SAFETY_CHECKER
from darkroom_plugins.files import MetaNetworks
from darkroom_plugins.request import PreviewMode

if TYPE_CHECKING:
    from darkroom_plugins.contract import Family
    from darkroom_plugins.files import ModelFiles
    from darkroom_plugins.manager import Plugins
    from darkroom_server.config.settings import ModelSettings


def open_extras(
    family: Family, files: ModelFiles, settings: ModelSettings, plugins: Plugins
) -> tuple[MetaNetworks, list[str]]:
    """The networks that these settings add, on the meta device, by component name; and the problems of others, each
    beginning with its settings key."""
    added = MetaNetworks()
    problems = []
    for each in plugins.with_components():
        try:
            added = MetaNetworks(added, each.components(family, files, settings))
        except (OSError, ValueError) as error:
            problems.append(str(error))
    if settings.safety != "off" and SAFETY_CHECKER not in added and not problems:
        problems.append(f"safety: is {settings.safety!r}, but no plugin checks pictures; safety may be blocked")
    return added, problems


def preview_modes(family: Family, settings: ModelSettings, plugins: Plugins) -> tuple[PreviewMode, ...]:
    """A model's preview modes. Only off with `safety = "block"`: previews would show blocked images."""
    if settings.safety == "block":
        return ("off",)
    added = {name for name, each in plugins.preview_decoders.items() if each.component in family.meta_components}
    its = {*family.info.preview_modes, *added}
    return tuple(m for m in get_args(PreviewMode) if m in its and (m == "off" or m in plugins.preview_decoders))
