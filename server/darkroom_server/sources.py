"""Where a model's files are, by its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from darkroom_plugins.files import ModelFiles
from darkroom_plugins.hub import HubFiles
from darkroom_plugins.weights import PICKLES, REFUSED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from darkroom_server.settings import ModelSettings


def files_of(settings: ModelSettings) -> ModelFiles:
    """The files of a model. Of one of the hub the configuration is fetched, where it is not in the cache.

    :raises OSError: there is no such file, folder or repository
    :raises ValueError: the settings contradict each other; the message names them all
    """
    if problems := list(_problems(settings)):
        raise ValueError("; ".join(problems))
    vae = settings.vae and settings.vae.expanduser()
    if settings.hub is not None:
        return HubFiles.find(settings.hub, settings.revision, settings.variant, vae)
    assert settings.path is not None
    path = settings.path.expanduser()
    if path.is_dir():
        return ModelFiles(path, settings.variant, vae=vae)
    assert settings.config is not None
    return ModelFiles(settings.config.expanduser(), checkpoint=path, vae=vae)


def _problems(settings: ModelSettings) -> Iterator[str]:
    if (settings.path is None) == (settings.hub is None):
        yield "path, hub: a model has one of them"
    if settings.revision is not None and settings.hub is None:
        yield "revision: only a repository of the hub has one"
    if settings.path is None:
        yield from _missing(settings)
        return
    path = settings.path.expanduser()
    if path.suffix in PICKLES:
        yield f"path: {path}: {REFUSED}; convert it to safetensors"
    elif path.is_file() and path.suffix != ".safetensors":
        yield f"path: {path} is neither a folder nor a .safetensors file"
    elif path.is_file() and settings.config is None:
        yield "config: a single-file checkpoint needs a folder with the configuration of its architecture"
    elif path.is_file() and settings.variant is not None:
        yield "variant: a single-file checkpoint has none"
    elif path.is_dir() and settings.config is not None:
        yield "config: only a single-file checkpoint takes one"
    yield from _missing(settings)


def _missing(settings: ModelSettings) -> Iterator[str]:
    for key in ("path", "config", "vae"):
        path = getattr(settings, key)
        if path is not None and not path.expanduser().exists():
            yield f"{key}: there is no {path}"
    if settings.vae is not None and settings.vae.suffix in PICKLES:
        yield f"vae: {settings.vae}: {REFUSED}; convert it to safetensors"
