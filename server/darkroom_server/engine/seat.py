"""A sample's state in the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from darkroom_plugins.sample import Sample
    from darkroom_server.jobs.job import Job


@dataclass(slots=True, eq=False)
class Seat:
    """A sample's place in the engine."""

    job: Job
    index: int
    sample: Sample | None = None  # None until its turn comes
    began: float = 0.0  # time.monotonic at its first evaluation
    previewed: float = float("-inf")  # the same at its last preview
    evaluations: int = 0  # under offload: of its lane since other networks than the denoiser had their turn
    denoiser_stays: bool = False  # under offload: this tick brings no other network to the device

    @property
    def rows(self) -> int:
        """How many rows it takes in the next batch."""
        if self.sample is None or self.sample.done:
            return len(self.job.plan.prompts)
        return len(self.sample.conditions)
