"""Slots: the engine's state of samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from darkroom_plugins.sample import BatchCache

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from darkroom_plugins.sample import Sample
    from darkroom_server.jobs.job import Job
    from darkroom_server.jobs.plan import Plan
    from darkroom_server.schedulers.tables import Step


@dataclass(slots=True, eq=False)
class Slot:
    """One image of a job in the engine: its sample, and the state that batching and previews need."""

    job: Job
    index: int  # which image of its job
    number: int = 0  # less than those of later slots
    plan: Plan = field(init=False)  # of the stage that it is at
    first_stage: torch.Tensor | None = None  # the clean latents of the stage before, in a second one
    sample: Sample | None = None  # None until its first batch
    began: float = 0.0  # time.monotonic at its first evaluation
    previewed: float = float("-inf")  # time.monotonic at its last preview
    evaluations: int = 0  # under offload: its lane's since the last network swap
    skip_network_swap: bool = False  # under offload: this tick uses no network but the denoiser
    batch_cache: BatchCache = field(default_factory=BatchCache)  # of the batch in which this slot is first

    def __post_init__(self) -> None:
        self.plan = self.job.plan

    @property
    def rows(self) -> int:
        """Its number of rows in the next batch. May be read on another thread, while the slot goes on to a stage."""
        sample = self.sample
        conditions = () if sample is None or sample.done else sample.conditions  # none until it has begun
        return len(conditions or self.plan.prompts)

    @property
    def evaluations_left(self) -> int:
        """How many evaluations its sample still takes; at least one. May be read on another thread, as `rows`."""
        steps, sample = self.plan.steps, self.sample
        done = steps.first if sample is None else sample.evaluation
        return max(1, len(steps.timesteps) - done)

    @property
    def steps_before(self) -> int:
        """The steps of the stages before this one: steps are numbered on."""
        return sum(stage.steps.count for stage in self._stages_before)

    @property
    def _stages_before(self) -> tuple[Plan, ...]:
        stages = self.job.plan.stages
        return stages[: stages.index(self.plan)]

    def eta(self, step: int, elapsed: float) -> float:
        """Seconds that the steps after this one of its stage will take, if each takes as long for each pixel as those
        did until now, in so many seconds."""
        done = sum(stage.pixel_steps for stage in self._stages_before) + step * self.plan.pixels
        return elapsed / done * (sum(stage.pixel_steps for stage in self.job.plan.stages) - done)

    @property
    def step(self) -> Step | None:
        """The coefficients of its sample's next scheduler step; None without a table of them."""
        return self.plan.table.at(self.sample.evaluation) if self.sample is not None else None


def announce(slots: Iterable[Slot], turn: bool) -> None:
    """Tell these slots' jobs of work that is about to be done for them: see Job.before_work."""
    for job in dict.fromkeys(slot.job for slot in slots):
        if (tell := job.before_work) is not None:
            tell(turn)
