"""Everything that a request may name."""

from __future__ import annotations

from collections import deque
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from darkroom_plugins.manager import Plugins
    from darkroom_server.config.settings import Limits
    from darkroom_server.models.assets import AssetFiles
    from darkroom_server.models.model import Model
    from darkroom_server.models.residency import Store


@dataclass(frozen=True, slots=True)
class Catalog:
    """The models and plugins of this server, and the limits that it sets."""

    plugins: Plugins
    models: dict[str, Model]
    assets: AssetFiles
    store: Store
    default_model: str
    limits: Limits
    shared: MutableMapping[Any, Any] = field(default_factory=WeakValueDictionary)  # what jobs that ask alike share
    recent: deque[Any] = field(default_factory=lambda: deque(maxlen=128))  # keeps what the last ones shared

    def tasks(self, model: Model) -> list[str]:
        """The names of the tasks that a model can do, sorted."""
        return sorted(name for name, task in self.plugins.tasks.items() if not task.misfit(model.info))

    def step_range(self, scheduler: str) -> tuple[int, int]:
        """The least and the greatest number of steps that a scheduler may be asked for here."""
        entry = self.plugins.schedulers[scheduler]
        return entry.min_steps, min(entry.max_steps, self.limits.max_inference_steps)

    def size_range(self, model: Model) -> tuple[int, int]:
        """The least and the greatest width and height of a model's pictures: pixels, multiples of its factor."""
        factor = model.info.size_factor
        return factor, self.limits.max_edge // factor * factor
