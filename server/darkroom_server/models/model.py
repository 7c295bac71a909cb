"""The models that the server offers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from darkroom_server.networks.placement import Placement

if TYPE_CHECKING:
    from darkroom_plugins.contract import Family, ModelInfo
    from darkroom_plugins.files import ModelFiles
    from darkroom_plugins.request import PreviewMode
    from darkroom_server.config.settings import ModelSettings


class ModelError(Exception):
    """A model that cannot be offered as it is configured; the server does not start."""


@dataclass(slots=True, eq=False)
class Model:
    """A model by name."""

    settings: ModelSettings
    files: ModelFiles
    family: Family  # without its networks while it is not loaded
    default_scheduler: str
    preview_modes: tuple[PreviewMode, ...]
    device_bytes: int  # that its weights take on the device, at most
    placement: Placement = field(default_factory=Placement)  # of its networks, while it is loaded

    @property
    def info(self) -> ModelInfo:
        """What its files say of it."""
        return self.family.info

    @property
    def max_cache_interval(self) -> int:
        """In evaluations. Groups of layers come in the order of the first evaluation, so that none can be left out."""
        return 1 if self.settings.offload == "group" else self.info.max_cache_interval

    @property
    def default_preview_mode(self) -> PreviewMode:
        """What requests without a mode get: what is configured, where that is possible."""
        wanted = self.settings.default_preview_mode
        return wanted if wanted in self.preview_modes else "off"

    @property
    def name(self) -> str:
        """What clients call it."""
        return self.settings.name
