"""Where a model's files are, by its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from darkroom_plugins.builtin.previews import TINY_VAE
from darkroom_plugins.builtin.safety import PART as SAFETY_CHECKER
from darkroom_plugins.files import ModelFiles
from darkroom_plugins.files.hub import HubFiles, located, located_config
from darkroom_plugins.files.hub_paths import hub_place

if TYPE_CHECKING:
    from darkroom_server.config.settings import ModelSettings


def files_of(settings: ModelSettings) -> ModelFiles:
    """The files of a model. Of one of the hub the configuration is fetched where it is not in the cache, and of what
    goes with it in single files or folders everything.

    :raises OSError: there is no such repository, or it cannot be reached
    """
    parts = {name: located(path) for name, path in (("vae", settings.vae), (TINY_VAE, settings.tiny_vae)) if path}
    place = hub_place(settings.path)
    if settings.config is not None:
        config = located_config(settings.config)
        if settings.safety != "off":  # which is never in a checkpoint
            parts[SAFETY_CHECKER] = located(settings.config / SAFETY_CHECKER)
        return ModelFiles(config, checkpoint=located(settings.path), parts=parts)
    if place:
        return HubFiles.find(place.repository, place.revision, settings.variant, parts)
    return ModelFiles(settings.path, settings.variant, parts=parts)
