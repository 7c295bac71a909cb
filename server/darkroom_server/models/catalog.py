"""Everything that a request may name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from darkroom_plugins.manager import Plugins
    from darkroom_server.config.settings import Limits
    from darkroom_server.models.assets import AssetFiles
    from darkroom_server.models.model import Model


@dataclass(frozen=True, slots=True)
class Catalog:
    """The models and plugins of this server, and the limits that it sets."""

    plugins: Plugins
    models: dict[str, Model]
    assets: AssetFiles
    default_model: str
    limits: Limits

    def tasks(self, model: Model) -> list[str]:
        """The names of the tasks that a model can do, sorted."""
        return sorted(name for name, task in self.plugins.tasks.items() if not task.incompatibility(model.info))

    def step_range(self, scheduler: str) -> tuple[int, int]:
        """The least and the greatest number of steps that a scheduler may be asked for here."""
        entry = self.plugins.schedulers[scheduler]
        return entry.min_steps, min(entry.max_steps, self.limits.max_inference_steps)

    def size_range(self, model: Model) -> tuple[int, int]:
        """The least and the greatest width and height of a model's pictures: pixels, multiples of its factor."""
        factor = model.info.size_factor
        return factor, self.limits.max_edge // factor * factor
