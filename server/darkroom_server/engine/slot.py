"""Slots: the engine's state of samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from darkroom_plugins.sample import BatchCache

if TYPE_CHECKING:
    from darkroom_plugins.sample import Sample
    from darkroom_server.jobs.job import Job
    from darkroom_server.schedulers.tables import Step


@dataclass(slots=True, eq=False)
class Slot:
    """One image of a job in the engine: its sample, and the state that batching and previews need."""

    job: Job
    index: int  # which image of its job
    number: int = 0  # less than those of later slots
    sample: Sample | None = None  # None until its first batch
    began: float = 0.0  # time.monotonic at its first evaluation
    previewed: float = float("-inf")  # time.monotonic at its last preview
    evaluations: int = 0  # under offload: its lane's since the last network swap
    skip_network_swap: bool = False  # under offload: this tick uses no network but the denoiser
    batch_cache: BatchCache = field(default_factory=BatchCache)  # of the batch in which this slot is first

    @property
    def rows(self) -> int:
        """Its number of rows in the next batch."""
        if self.sample is None or self.sample.done:
            return len(self.job.plan.prompts)
        return len(self.sample.conditions)

    @property
    def step(self) -> Step | None:
        """The coefficients of its sample's next scheduler step; None without a table of them."""
        return self.job.plan.table.at(self.sample.evaluation) if self.sample is not None else None
