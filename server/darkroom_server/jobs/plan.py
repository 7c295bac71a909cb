"""Plans: all that is resolved for a job before the engine runs it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from darkroom_server.models.assets import AcquiredAssets
from darkroom_server.schedulers.tables import Table

if TYPE_CHECKING:
    from darkroom_plugins.canvas import Canvas
    from darkroom_plugins.contract import Adapter, Conditioner, Contribution, Finisher, PromptKey, SchedulerEntry, Task
    from darkroom_plugins.request import Pixels, Request
    from darkroom_server.models.model import Model
    from darkroom_server.models.residency import Key
    from darkroom_server.schedulers.schedule import Steps


NO_TABLE, NO_ASSETS = Table(), AcquiredAssets()


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """How to make a job's images: model, plugins, scheduler, prompts, inputs and batch key."""

    request: Request  # final: without the images that maps were made from
    model: Model
    task: Task
    conditioners: tuple[Conditioner, ...]
    adapters: tuple[Adapter, ...]
    finishers: tuple[Finisher, ...]
    entry: SchedulerEntry
    scheduler: Any  # a diffusers scheduler with its timesteps set; each sample gets a copy
    steps: Steps
    prompts: tuple[PromptKey, ...]  # one for each of a sample's rows
    canvas: Canvas
    controls: tuple[Pixels, ...]  # the map of each of the request's controls
    needs: tuple[Key, ...]  # must be resident while the job runs
    batch_key: tuple[Hashable, ...]  # jobs with equal keys share evaluations
    solo: bool  # each of its samples is evaluated alone
    bucket: int  # of deterministic jobs: rows of the smallest batch; 0: of others
    row_buckets: tuple[int, ...] = ()  # the numbers of rows that its batches have; none: any
    table: Table = NO_TABLE  # of the scheduler's step coefficients
    assets: AcquiredAssets = NO_ASSETS  # the values of `needs`, once acquired

    following: Plan | None = None  # of the second stage, which goes on from the result of this one
    tiled: bool = False  # its pictures are encoded and decoded in tiles
    preview_by_network: bool = False  # its previews run one of the model's networks

    @property
    def contributions(self) -> tuple[Contribution, ...]:
        """All that take part in its stage."""
        return (self.task, *self.conditioners, *self.adapters, *self.finishers)

    @property
    def stages(self) -> tuple[Plan, ...]:
        """This plan, and those that follow."""
        return (self, *(self.following.stages if self.following is not None else ()))

    @property
    def last(self) -> Plan:
        """The plan of the last stage, whose result is the picture."""
        return self.stages[-1]

    @property
    def step_count(self) -> int:
        """The steps of all its stages."""
        return sum(stage.steps.count for stage in self.stages)

    @property
    def pixels(self) -> int:
        """Of a picture, at its stage."""
        return self.request.width * self.request.height

    @property
    def pixel_steps(self) -> int:
        """The steps of its stage, each times the pixels."""
        return self.steps.count * self.pixels

    @property
    def held_bytes(self) -> int:
        """Bytes of its images in memory while it waits."""
        frame, image = self.canvas.frame, self.canvas.image
        pixels = sum(each.nbytes for stage in self.stages for each in stage.controls)
        return pixels + (image.nbytes if image is not None else 0) + (6 * frame.width * frame.height if frame else 0)

    def with_assets(self, values: Mapping[tuple[str, str], Any]) -> Plan:
        """The plan with the assets that its job acquired."""
        following = self.following.with_assets(values) if self.following is not None else None
        return replace(self, assets=AcquiredAssets(values), following=following)
