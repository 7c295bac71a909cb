"""A sample's state in the engine."""

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
    """A sample's place in the engine."""

    job: Job
    index: int  # which image of its job
    sample: Sample | None = None  # None until its turn comes
    began: float = 0.0  # time.monotonic at its first evaluation
    previewed: float = float("-inf")  # the same at its last preview
    evaluations: int = 0  # under offload: of its lane since the last network swap
    skip_network_swap: bool = False  # under offload: no network but the denoiser is brought to the device in this tick
    batch_cache: BatchCache = field(default_factory=BatchCache)  # of the batch that it is the first of

    @property
    def rows(self) -> int:
        """How many rows it takes in the next batch."""
        if self.sample is None or self.sample.done:
            return len(self.job.plan.prompts)
        return len(self.sample.conditions)

    @property
    def step(self) -> Step | None:
        """The coefficients of its sample's next step, where its job has a table with them."""
        return self.job.plan.table.at(self.sample.evaluation) if self.sample is not None else None
