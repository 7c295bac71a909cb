"""What is decided of a job before its turn comes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from darkroom_server.models.assets import AcquiredAssets
from darkroom_server.schedulers.tables import Table

if TYPE_CHECKING:
    from darkroom_plugins.canvas import Canvas
    from darkroom_plugins.contract import Adapter, Conditioner, Finisher, PromptKey, SchedulerEntry, Task
    from darkroom_plugins.request import Pixels, Request
    from darkroom_server.models.model import Model
    from darkroom_server.models.residency import Key
    from darkroom_server.schedulers.schedule import Steps


NO_TABLE, NO_ASSETS = Table(), AcquiredAssets()


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Who makes a job's images, and how: everything that is known before its turn comes."""

    request: Request  # final: without the pictures that maps were made of
    model: Model
    task: Task
    conditioners: tuple[Conditioner, ...]
    adapters: tuple[Adapter, ...]
    finishers: tuple[Finisher, ...]
    entry: SchedulerEntry
    scheduler: Any  # a diffusers scheduler with its timesteps set; each sample gets a copy
    steps: Steps
    prompts: tuple[PromptKey, ...]  # of each sample's rows
    canvas: Canvas
    controls: tuple[Pixels, ...]  # the map of each of the request's controls
    needs: tuple[Key, ...]  # what must be resident
    batch_key: tuple[Hashable, ...]  # what must be equal to share an evaluation
    solo: bool  # whether each of its samples is evaluated alone
    table: Table = NO_TABLE  # of the scheduler
    assets: AcquiredAssets = NO_ASSETS  # those of `needs`, once they are there

    preview_by_network: bool = False  # whether its previews run one of the model's networks

    @property
    def held_bytes(self) -> int:
        """What its pictures take in memory, which they do while it waits."""
        frame, image = self.canvas.frame, self.canvas.image
        pixels = sum(each.nbytes for each in self.controls)
        return pixels + (image.nbytes if image is not None else 0) + (6 * frame.width * frame.height if frame else 0)

    def with_assets(self, values: Mapping[tuple[str, str], Any]) -> Plan:
        """The plan with what its job acquired."""
        return replace(self, assets=AcquiredAssets(values))
