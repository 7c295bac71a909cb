"""Where a model's files are, by its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from darkroom_plugins.files import ModelFiles
from darkroom_plugins.hub import HubFiles
from darkroom_plugins.previews import TINY_VAE
from darkroom_plugins.safety import PART as SAFETY_CHECKER

if TYPE_CHECKING:
    from darkroom_server.settings import ModelSettings


def files_of(settings: ModelSettings) -> ModelFiles:
    """The files of a model. Of one of the hub the configuration is fetched, where it is not in the cache.

    :raises OSError: there is no such repository, or it cannot be reached
    """
    parts = {name: path for name, path in (("vae", settings.vae), (TINY_VAE, settings.tiny_vae)) if path}
    if settings.hub is not None:
        return HubFiles.find(settings.hub, settings.revision, settings.variant, parts)
    assert settings.path is not None
    if settings.config is None:
        return ModelFiles(settings.path, settings.variant, parts=parts)
    # A checkpoint in one file never has a safety checker.
    parts[SAFETY_CHECKER] = settings.config / SAFETY_CHECKER
    return ModelFiles(settings.config, checkpoint=settings.path, parts=parts)
