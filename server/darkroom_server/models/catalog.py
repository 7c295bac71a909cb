"""The catalog: all that a request may name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from darkroom_server.models.assets import AssetFiles
from darkroom_server.models.opening import check_budget, open_models
from darkroom_server.pictures.uploads import Uploads

if TYPE_CHECKING:
    from darkroom_plugins.manager import Plugins
    from darkroom_server.config.settings import Limits, Settings
    from darkroom_server.models.model import Model


@dataclass(frozen=True, slots=True)
class Catalog:
    """The models, assets and plugins of this server, its limits, and what decodes pictures within them."""

    plugins: Plugins
    models: dict[str, Model]
    assets: AssetFiles
    default_model: str
    limits: Limits
    uploads: Uploads

    @classmethod
    def open(cls, settings: Settings, plugins: Plugins, by_headers: bool = False) -> Catalog:
        """What these settings offer, without weights. `by_headers`: see `open_models`.

        :raises ModelError: a model or asset cannot be served as configured
        """
        models = open_models(settings, plugins, by_headers)
        assets = AssetFiles(settings, plugins, models)
        check_budget(models, settings.memory_budget)
        default = settings.default_model or settings.models[0].name
        uploads = Uploads(settings.limits, settings.reader_threads, settings.upload_memory, settings.upload_seconds)
        return cls(plugins, models, assets, default, settings.limits, uploads)

    def tasks(self, model: Model) -> list[str]:
        """The names of a model's tasks, sorted."""
        return sorted(name for name, task in self.plugins.tasks.items() if not task.incompatibility(model.info))

    def step_range(self, scheduler: str) -> tuple[int, int]:
        """The minimum and maximum step count of a scheduler on this server."""
        entry = self.plugins.schedulers[scheduler]
        return entry.min_steps, min(entry.max_steps, self.limits.max_inference_steps)

    def size_range(self, model: Model) -> tuple[int, int]:
        """The minimum and maximum width and height of a model's images: pixels, multiples of its size factor."""
        factor = model.info.size_factor
        return factor, min(self.limits.max_edge, model.max_edge) // factor * factor

    def max_pixels(self, model: Model) -> int:
        """The maximum width times height of a model's images, pixels."""
        return min(self.limits.max_pixels, model.max_pixels)
