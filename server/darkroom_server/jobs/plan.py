"""What is decided of a job before its turn comes."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from darkroom_plugins.contract import BatchContract

if TYPE_CHECKING:
    from darkroom_plugins.canvas import Canvas
    from darkroom_plugins.contract import Adapter, Conditioner, Finisher, PromptKey, Task
    from darkroom_plugins.request import Pixels, Request
    from darkroom_server.models.holdings import ModelAssets
    from darkroom_server.models.model import Model
    from darkroom_server.models.residency import Key
    from darkroom_server.schedulers.schedule import Steps
    from darkroom_server.schedulers.tables import Table


@dataclass(slots=True, eq=False)
class Plan:
    """Who makes a job's images, and how: everything that is known before its turn comes."""

    model: Model
    task: Task
    conditioners: tuple[Conditioner, ...]
    adapters: tuple[Adapter, ...]
    finishers: tuple[tuple[Finisher, Any], ...]  # each with its parameters
    scheduler: Any  # a diffusers scheduler with its timesteps set; each sample gets a copy
    steps: Steps
    prompts: tuple[PromptKey, ...]  # of each sample's rows
    canvas: Canvas
    controls: tuple[Pixels, ...]  # the map of each of the request's controls
    assets: ModelAssets
    needs: tuple[Key, ...]  # what must be resident
    table: Table = field(default_factory=dict)  # of the scheduler

    @property
    def held_bytes(self) -> int:
        """What its pictures take in memory, which they do while it waits."""
        frame, image = self.canvas.frame, self.canvas.image
        pixels = sum(each.nbytes for each in self.controls)
        return pixels + (image.nbytes if image is not None else 0) + (6 * frame.width * frame.height if frame else 0)

    def batch_key(self, request: Request) -> tuple[Hashable, ...]:
        """What must be equal to share an evaluation. Its last item says whether a sample is to be alone."""
        parts = (self.task, *self.conditioners, *self.adapters)
        solo = request.deterministic or any(p.contract is BatchContract.SOLO for p in parts)
        keys = tuple((p.name, p.key(request)) for p in parts if p.contract is BatchContract.KEYED)
        return (self.model.name, request.width, request.height, self.prompts[0].length, keys, solo)
