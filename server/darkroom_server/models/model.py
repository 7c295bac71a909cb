"""The models of the catalog."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from darkroom_plugins.contract import Family, ModelInfo
    from darkroom_plugins.files import ModelFiles
    from darkroom_plugins.request import PreviewMode
    from darkroom_server.config.consistency import Location
    from darkroom_server.config.settings import ModelSettings
    from darkroom_server.networks.placement import Placement


# What models were not made for costs more and shows shapes twice: the default limits are these multiples of their own
# size, which is the largest of the usual upscaling by two.
EDGES, AREAS = 4, 4


class ModelError(Exception):
    """A model's configuration is invalid; the server does not start."""


class InvalidPresets(ModelError):
    """Presets that no request could name: `violations` has the place of each in the settings, and what is wrong."""

    def __init__(self, violations: Sequence[tuple[Location, str]]) -> None:
        self.violations = violations
        super().__init__("\n".join(f"{'.'.join(map(str, place))}: {words}" for place, words in violations))


@dataclass(slots=True, eq=False)
class Model:
    """A configured model, loaded or not."""

    settings: ModelSettings
    files: ModelFiles
    family: Family  # has networks only while it is loaded
    default_scheduler: str
    preview_modes: tuple[PreviewMode, ...]
    device_bytes: int  # of its weights on the device, at most
    placement: Placement = field(init=False)  # of its networks; set when it is loaded

    @property
    def info(self) -> ModelInfo:
        """Its properties, read from its configuration files."""
        return self.family.info

    @property
    def max_edge(self) -> int:
        """The maximum width and height of its images, pixels."""
        return self.settings.max_edge or EDGES * max(self.info.default_width, self.info.default_height)

    @property
    def max_pixels(self) -> int:
        """The maximum width times height of its images, pixels."""
        return self.settings.max_pixels or AREAS * self.info.default_width * self.info.default_height

    @property
    def max_cache_interval(self) -> int:
        """In evaluations. Group offload prefetches layers in their first order, so that none can be skipped."""
        return 1 if self.settings.offload == "group" else self.info.max_cache_interval

    @property
    def default_preview_mode(self) -> PreviewMode:
        """The preview mode of requests without one: the configured mode, or off if the model lacks it."""
        wanted = self.settings.default_preview_mode
        return wanted if wanted in self.preview_modes else "off"

    @property
    def name(self) -> str:
        """Its name for clients."""
        return self.settings.name
