"""The files that go with models: ControlNets, LoRAs, embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkroom_plugins.errors import DarkroomError, UnsupportedCombination, Violation
from darkroom_plugins.files.hub import located
from darkroom_server.errors import LoadFailed
from darkroom_server.models.holdings import AssetHolding, ModelHolding
from darkroom_server.models.model import Model, ModelError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from darkroom_plugins.contract import AssetInfo, AssetKind, AssetUser
    from darkroom_plugins.manager import Plugins
    from darkroom_plugins.request import Request
    from darkroom_server.config.settings import AssetSettings, Settings
    from darkroom_server.models.residency import Holding, Key, Store


@dataclass(frozen=True, slots=True)
class Asset:
    """A file that the operator lists, with the models that it fits. `misfits` says for each other one why not."""

    settings: AssetSettings
    path: Path
    user: AssetUser
    info: AssetInfo
    misfits: Mapping[str, str]
    fits: tuple[str, ...]


class AssetFiles:
    """All assets, by kind and name."""

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

    def _open(self, kind: AssetKind, settings: AssetSettings, models: Mapping[str, Model]) -> Asset:
        if kind not in self._users:
            raise ModelError(f"{kind} {settings.name!r}: no plugin works with files of this kind")
        user, path = self._users[kind], settings.path
        try:
            path = located(path)
            info = user.describe_asset(path)
            misfits = {name: user.misfit(path, model.family) for name, model in models.items()}
        except Exception as error:  # safetensors raises an error of its own
            raise ModelError(f"{kind} {settings.name!r}: {path} cannot be used: {error}") from error
        whys = {name: why for name, why in misfits.items() if why}
        return Asset(settings, path, user, info, whys, tuple(sorted(set(models) - set(whys))))


@dataclass(frozen=True, slots=True)
class ModelAssets:
    """The assets that fit one model, for one request: what plugins see."""

    files: AssetFiles
    store: Store
    model: Model

    def names(self, kind: AssetKind) -> Sequence[str]:
        """Those that fit the model, sorted."""
        return [name for name, asset in self.files.entries[kind].items() if self.model.name in asset.fits]

    def get(self, kind: AssetKind, name: str) -> Any:
        """What the plugin of this kind made of the file. The job has acquired it, but for embeddings, which are so
        small that they are read while the prompt is.

        :raises LoadFailed: an embedding does not load
        """
        holding = self.store[kind, name, self.model.name]
        assert isinstance(holding, AssetHolding)
        if kind == "embedding":
            holding.read()
        return holding.value


def needs(request: Request) -> tuple[tuple[str, ...], ...]:
    """The keys of what must be resident for a request."""
    nets = [("controlnet", control.model) for control in request.controls if control.scale > 0]
    loras = [("lora", lora.name) for lora in request.loras if lora.weight != 0]
    return ("model", request.model), *((*each, request.model) for each in (*nets, *loras))


def refusal(request: Request, error: LoadFailed) -> DarkroomError:
    """What a request gets that needs what does not load: where it is the request's choice, that says where."""
    named = {
        "lora": [(f"loras[{index}].name", lora.name) for index, lora in enumerate(request.loras)],
        "controlnet": [(f"controls[{index}].model", each.model) for index, each in enumerate(request.controls)],
        "embedding": [("prompt", error.key[1])],
    }
    paths = [path for path, name in named.get(error.key[0], ()) if name == error.key[1]]
    return UnsupportedCombination([Violation(f"parameters.{path}", str(error)) for path in paths]) if paths else error


def holdings(
    models: Mapping[str, Model], assets: AssetFiles, ready: Callable[[Model], Awaitable[None]]
) -> dict[Key, Holding]:
    """Everything that can be loaded, by its key. `ready` is awaited after each loading of a model."""
    listed = [asset for entries in assets.entries.values() for asset in entries.values()]
    found: list[Holding] = [ModelHolding(model, ready) for model in models.values()]
    found += (AssetHolding(asset, models[name]) for asset in listed for name in asset.fits)
    return {holding.key: holding for holding in found}
