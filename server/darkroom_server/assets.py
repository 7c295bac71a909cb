"""The files that go with models: ControlNets, LoRAs, embeddings."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkroom_plugins.errors import UnsupportedCombination, Violation
from darkroom_plugins.files import LOADING
from darkroom_server.models import Model, ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from darkroom_plugins.contract import AssetInfo, AssetKind, AssetUser
    from darkroom_plugins.manager import Plugins
    from darkroom_plugins.request import Request
    from darkroom_server.settings import AssetSettings, Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Asset:
    """A file that the operator lists, with the models that it fits. `misfits` says for each other one why not."""

    settings: AssetSettings
    path: Path
    user: AssetUser
    info: AssetInfo
    misfits: Mapping[str, str]
    fits: tuple[str, ...]


class AssetStore:
    """All assets, by kind and name; what is loaded of them is kept, for each model by itself."""

    def __init__(self, settings: Settings, plugins: Plugins, models: Mapping[str, Model]) -> None:
        """:raises ModelError: a file is not what it is listed as"""
        users = [*plugins.conditioners.values(), *plugins.adapters.values()]
        self._users = {user.asset_kind: user for user in users if user.asset_kind}
        listed: dict[AssetKind, list[AssetSettings]] = {
            "controlnet": settings.controlnets,
            "lora": settings.loras,
            "embedding": settings.embeddings,
        }
        for net in settings.controlnets:
            if net.preprocessor and net.preprocessor not in plugins.preprocessors:
                raise ModelError(f"controlnet {net.name!r}: there is no preprocessor {net.preprocessor!r}")
        self.entries: dict[AssetKind, dict[str, Asset]] = {
            kind: {each.name: self._open(kind, each, models) for each in sorted(files, key=lambda each: each.name)}
            for kind, files in listed.items()
        }
        self._loaded: dict[tuple[AssetKind, str, str], Any] = {}  # what failed to load is kept as its error

    def _open(self, kind: AssetKind, settings: AssetSettings, models: Mapping[str, Model]) -> Asset:
        if kind not in self._users:
            raise ModelError(f"{kind} {settings.name!r}: no plugin works with files of this kind")
        user, path = self._users[kind], settings.path.expanduser()
        try:
            info = user.describe_asset(path)
            misfits = {name: user.misfit(path, model.family) for name, model in models.items()}
        except Exception as error:  # safetensors raises an error of its own
            raise ModelError(f"{kind} {settings.name!r}: {path} cannot be used: {error}") from error
        whys = {name: why for name, why in misfits.items() if why}
        return Asset(settings, path, user, info, whys, tuple(sorted(set(models) - set(whys))))

    def is_loaded(self, asset: Asset) -> bool:
        """Whether it is in memory, for some model."""
        return any(self.entries[kind][name] is asset for kind, name, _ in tuple(self._loaded))

    def loaded(self, kind: AssetKind, name: str, model: Model) -> Any:
        """What this asset's plugin made of it for this model, or the error that it failed with."""
        key, asset = (kind, name, model.name), self.entries[kind][name]
        if key in self._loaded:  # without waiting for others that load
            return self._loaded[key]
        with LOADING:
            if key not in self._loaded:
                try:
                    self._loaded[key] = asset.user.load_asset(asset.path, model.family)
                except Exception as error:
                    log.warning("%s %s does not load with the model %s", kind, name, model.name, exc_info=error)
                    self._loaded[key] = ValueError(f"the {kind} {name} does not load with the model {model.name}")
            return self._loaded[key]


@dataclass(frozen=True, slots=True)
class ModelAssets:
    """The assets that fit one model, for one request: what plugins see."""

    store: AssetStore
    model: Model
    request: Request

    def names(self, kind: AssetKind) -> Sequence[str]:
        """Those that fit the model, sorted."""
        return [name for name, asset in self.store.entries[kind].items() if self.model.name in asset.fits]

    def get(self, kind: AssetKind, name: str) -> Any:
        """What the plugin of this kind made of the file; loaded at its first use.

        :raises UnsupportedCombination: it does not load with this model
        """
        loaded = self.store.loaded(kind, name, self.model)
        if isinstance(loaded, ValueError):
            raise UnsupportedCombination([Violation(self._path(kind, name), str(loaded))])
        return loaded

    def _path(self, kind: AssetKind, name: str) -> str:
        """Where the request names it."""
        named = {
            "lora": [(f"loras[{index}].name", lora.name) for index, lora in enumerate(self.request.loras)],
            "controlnet": [
                (f"controls[{index}].model", each.model) for index, each in enumerate(self.request.controls)
            ],
        }
        return "parameters." + next((path for path, given in named.get(kind, ()) if given == name), "prompt")
