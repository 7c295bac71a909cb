"""Assets: ControlNets, LoRAs and embeddings."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from darkroom_plugins.contract import AssetInfo
from darkroom_plugins.deferred import nn
from darkroom_plugins.errors import no_such
from darkroom_plugins.files.hub_paths import located
from darkroom_plugins.files.safetensors_files import PICKLES, REFUSED
from darkroom_server.config.settings import MAX_NAME, NAME, AssetSettings
from darkroom_server.models.model import Model, ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from darkroom_plugins.contract import AssetKind, AssetUser
    from darkroom_plugins.manager import Plugins
    from darkroom_server.config.settings import Settings

log = logging.getLogger(__name__)


class File(NamedTuple):
    """A file in one of the folders: `state` changes with its content."""

    path: Path
    state: tuple[int, int, int]  # inode, bytes, nanoseconds


def files_in(folder: Path) -> dict[str, File]:
    """The weights files of a folder and its subfolders by their names, which are their paths in it without the suffix;
    pickles by their paths. What is hidden is left out.

    :raises OSError: the folder cannot be read
    """
    folder.stat()
    found = {}
    for path in sorted(each for each in folder.rglob("*") if each.suffix in (".safetensors", *PICKLES)):
        inner = path.relative_to(folder)
        name = inner.with_suffix("") if path.suffix == ".safetensors" else inner
        with suppress(FileNotFoundError):  # gone meanwhile
            if path.is_file() and not any(part.startswith(".") for part in inner.parts):
                stat = path.stat()
                found[name.as_posix()] = File(path, (stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return found


@dataclass(frozen=True, slots=True)
class Asset:
    """An asset that is offered, the models that it fits, and by model why it does not fit the others."""

    settings: AssetSettings
    path: Path
    user: AssetUser
    info: AssetInfo
    incompatibilities: Mapping[str, str] = field(default_factory=dict)
    fits: tuple[str, ...] = ()
    unusable: str = ""  # why no model can use its file
    file: File | None = None  # as it was when it was opened; None: it is no file of a folder

    @property
    def key(self) -> tuple[AssetKind, str]:
        """Its kind and name."""
        assert self.user.asset_kind is not None
        return self.user.asset_kind, self.settings.name

    @property
    def problem(self) -> str:
        """Why no model can use it; empty if one can."""
        return self.unusable or ("" if self.fits else "; ".join(dict.fromkeys(self.incompatibilities.values())))

    def refusal(self, model: str) -> str | None:
        """Why a model cannot use it, for clients; None if it can."""
        if self.unusable:
            return f"it cannot be used: {self.unusable}"
        why = self.incompatibilities.get(model)
        return f"with the model {model} it cannot be used: {why}" if why else None


@dataclass(frozen=True, slots=True)
class AcquiredAssets:
    """The loaded assets of a job: the `Assets` of its samples."""

    values: Mapping[tuple[str, str], Any] = field(default_factory=dict)  # by kind and name

    def names(self, kind: AssetKind) -> Sequence[str]:
        """The names of this kind, sorted."""
        return sorted(name for each, name in self.values if each == kind)

    def get(self, kind: AssetKind, name: str) -> Any:
        """The asset as its plugin loaded it."""
        return self.values[kind, name]

    @property
    def networks(self) -> list[nn.Module]:
        """The networks among them."""
        return [value for value in self.values.values() if isinstance(value, nn.Module)]


class AssetFiles:
    """All assets that are offered, by kind and name: those of the settings, and of the folders. A table of `entries`
    never changes: another takes its place."""

    def __init__(self, settings: Settings, plugins: Plugins, models: Mapping[str, Model]) -> None:
        """:raises ModelError: no plugin works with assets of a kind, or a ControlNet's preprocessor does not exist,
        or an asset of the hub is not in the cache and cannot be fetched"""
        self._models = models
        users = [*plugins.conditioners.values(), *plugins.adapters.values()]
        self._users = {user.asset_kind: user for user in users if user.asset_kind}
        listed: dict[AssetKind, list[AssetSettings]] = {
            "controlnet": settings.controlnets,
            "lora": settings.loras,
            "embedding": settings.embeddings,
        }
        for net in settings.controlnets:
            if net.preprocessor and net.preprocessor not in plugins.preprocessors:
                problem = no_such("preprocessor", net.preprocessor, plugins.preprocessors)
                raise ModelError(f"controlnet {net.name!r}: {problem}")
        self.entries: dict[AssetKind, dict[str, Asset]] = {
            kind: {each.name: self._open(kind, each, models) for each in sorted(files, key=lambda each: each.name)}
            for kind, files in listed.items()
        }
        folders: dict[AssetKind, Path | None] = {"lora": settings.lora_folder, "embedding": settings.embedding_folder}
        self.folders = {kind: folder for kind, folder in folders.items() if folder is not None}
        self._refused: dict[Path, File] = {}  # as the log says
        for kind, folder in self.folders.items():
            for name, file in self._found(kind, folder).items():
                if not self.refusal(kind, name, file):
                    self.put(self.open_file(kind, name, file))

    def _found(self, kind: AssetKind, folder: Path) -> dict[str, File]:
        """:raises ModelError: the folder cannot be read"""
        try:
            return files_in(folder)
        except OSError as error:
            raise ModelError(f"{kind}_folder: {folder} cannot be read: {error.strerror}") from error

    def refusal(self, kind: AssetKind, name: str, file: File) -> str:
        """Why a folder's file cannot be offered by its name, which is logged once; empty if it can."""
        other, why = self.entries[kind].get(name), ""
        if file.path.suffix != ".safetensors":
            why = f"{REFUSED}; convert it to safetensors"
        elif not re.fullmatch(NAME, name) or len(name) > MAX_NAME:
            why = f"its name may have up to {MAX_NAME} letters, digits and any of ._/-: rename it"
        elif other is not None and other.file is None:
            why = f"there is a {kind} of this name in the settings"
        if why and self._refused.get(file.path) != file:
            self._refused[file.path] = file
            log.warning("%s is not offered: %s", file.path, why)
        return why

    def open_file(self, kind: AssetKind, name: str, file: File) -> Asset:
        """A file of a folder as an asset, not offered yet.

        :raises ModelError: no plugin works with files of this kind
        """
        return replace(self._open(kind, AssetSettings(name=name, path=file.path), self._models), file=file)

    def put(self, asset: Asset) -> None:
        """Offer an asset."""
        kind, name = asset.key
        self.entries[kind] = dict(sorted({**self.entries[kind], name: asset}.items()))

    def remove(self, asset: Asset) -> None:
        """Offer an asset no more."""
        kind, gone = asset.key
        self.entries[kind] = {name: each for name, each in self.entries[kind].items() if name != gone}

    def _open(self, kind: AssetKind, settings: AssetSettings, models: Mapping[str, Model]) -> Asset:
        if kind not in self._users:
            raise ModelError(f"{kind} {settings.name!r}: no plugin works with files of this kind")
        user = self._users[kind]
        try:
            path = located(settings.path)
        except (OSError, ValueError) as error:  # the hub may answer at the next start
            raise ModelError(f"{kind} {settings.name!r}: {error}") from error
        try:
            if not path.exists():
                raise FileNotFoundError(f"there is nothing at {path}")
            info = user.describe_asset(path)
        except Exception as error:  # safetensors has its own error class
            asset = Asset(settings, path, user, AssetInfo(), unusable=_reason(error, path))
        else:
            whys = {name: why for name, model in models.items() if (why := _incompatibility(user, path, model))}
            asset = Asset(settings, path, user, info, whys, tuple(sorted(set(models) - set(whys))))
        if asset.problem:
            log.warning("%s %r cannot be used: %s: %s", kind, settings.name, path, asset.problem)
        return asset

    def fitting(self, model: str) -> dict[AssetKind, dict[str, Asset]]:
        """The assets that fit a model, by kind and name."""
        return {
            kind: {name: asset for name, asset in entries.items() if model in asset.fits}
            for kind, entries in self.entries.items()
        }


def _incompatibility(user: AssetUser, path: Path, model: Model) -> str | None:
    """Why it does not fit the model; None if it fits."""
    try:
        return user.incompatibility(path, model.family)
    except Exception as error:  # the other models may use it
        log.warning("%s with model %r", path, model.name, exc_info=error)
        return _reason(error, path)


def _reason(error: Exception, path: Path) -> str:
    """An error's message, never empty, without paths, which clients do not need."""
    return str(error).replace(str(path), path.name) or type(error).__name__
