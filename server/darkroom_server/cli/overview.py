"""Tables of `darkroom check`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ByteSize
from rich.markup import escape
from rich.table import Table

from darkroom_server.config.demo import with_demo
from darkroom_server.config.settings import MemoryOptions
from darkroom_server.models.catalog import Catalog

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from darkroom_plugins.manager import Plugins
    from darkroom_server.config.settings import ModelSettings, Settings
    from darkroom_server.models.assets import Asset, AssetFiles
    from darkroom_server.models.model import Model


def overview(settings: Settings, plugins: Plugins) -> tuple[list[Table], bool]:
    """Tables of models, assets, tokens and server settings, and whether all assets can be used; reads no weights.

    :raises ModelError: a model cannot be served as configured
    """
    settings = settings if settings.models else with_demo(settings)
    catalog = Catalog.open(settings, plugins, by_headers=True)
    models, assets = catalog.models, catalog.assets
    if any(model.settings.presets for model in models.values()):
        from darkroom_server.api.preset_check import check_presets  # which imports the schedulers' libraries

        check_presets(catalog)
    tables = [_models(settings, models), _presets(models), _assets(assets), _tokens(settings), _server(settings)]
    usable = not any(asset.unusable for entries in assets.entries.values() for asset in entries.values())
    return [table for table in tables if table.row_count], usable


def _models(settings: Settings, models: Mapping[str, Model]) -> Table:
    columns = ("model", "source", "family", "dtype", "device", "weights", "memory", "safety", "prediction")
    rows = (
        (
            f"{name} (default)" if name == (settings.default_model or settings.models[0].name) else name,
            str(model.settings.path),
            model.info.family,
            str(model.family.dtype).removeprefix("torch."),
            str(model.family.device),
            _size(model.family.weight_bytes),
            _memory(model.settings),
            model.settings.safety,
            _prediction(model),
        )
        for name, model in models.items()
    )
    return _table(columns, rows)


def _prediction(model: Model) -> str:
    zero_snr = model.family.own_scheduler.get("rescale_betas_zero_snr")
    return model.info.prediction_type + (", zero SNR" if zero_snr else "")


def _memory(model: ModelSettings) -> str:
    """The memory options that differ from the defaults."""
    chosen = model.model_dump(include=set(MemoryOptions.model_fields), exclude_defaults=True)
    return ", ".join(name if value is True else f"{name}={value}" for name, value in chosen.items())


def _presets(models: Mapping[str, Model]) -> Table:
    rows = (
        (name, model.name, ", ".join(f"{key} {_value(value)}" for key, value in preset.values.items()))
        for model in models.values()
        for name, preset in model.settings.presets.items()
    )
    return _table(("preset", "of model", "sets"), rows)


def _value(value: object) -> str:
    inner = value.items() if isinstance(value, dict) else ()
    return " + ".join(f"{key}:{each}" for key, each in inner) or str(value)


def _assets(assets: AssetFiles) -> Table:
    rows = (
        (kind, name, str(asset.settings.path), _models_of(asset), _size(asset.info.weight_bytes))
        for kind, entries in assets.entries.items()
        for name, asset in entries.items()
    )
    return _table(("kind", "name", "path", "for models", "size"), rows)


def _models_of(asset: Asset) -> str:
    """The models that an asset fits, or why it fits none."""
    return ", ".join(asset.fits) or f"none: {asset.problem}"


def _tokens(settings: Settings) -> Table:
    return _table(("token", "role"), ((token.name, token.role) for token in settings.tokens))


def _server(settings: Settings) -> Table:
    rows = {
        "listen": settings.listen,
        "memory_budget": _size(settings.memory_budget) if settings.memory_budget else "none",
        "park_budget": _size(settings.park_budget),
        "idle_seconds": f"{settings.idle_seconds:g}" if settings.idle_seconds else "none",
    }
    return _table(("server", ""), rows.items())


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")  # nothing is cut where the terminal is narrow
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _size(count: int) -> str:
    return ByteSize(count).human_readable(separator=" ")
