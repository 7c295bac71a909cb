"""Maps evaluations of the denoiser to inference steps; tells which schedulers begin at pure noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from darkroom_plugins.contract import SchedulerEntry


ZERO_SNR = "rescale_betas_zero_snr"  # diffusers' option


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Steps:
    """The evaluations of one image, grouped by inference step."""

    timesteps: torch.Tensor  # (evaluations,), on the CPU
    first: int  # the first evaluation
    ends: dict[int, int]  # last evaluation of a step → step, from 1
    begins: dict[int, int]  # step, from 1 → its first evaluation

    @property
    def evaluations(self) -> int:
        """The number of evaluations."""
        return len(self.timesteps) - self.first

    @property
    def count(self) -> int:
        """The number of inference steps."""
        return len(self.ends)


def count_steps(timesteps: torch.Tensor, first: int, order: int, num_inference_steps: int) -> Steps:
    """The steps of a scheduler with `order` evaluations a step, counted like the progress bar of diffusers' pipelines:
    surplus evaluations are warm-up, and belong to the first step."""
    evaluations = len(timesteps) - first
    warmup = evaluations - (num_inference_steps - first // order) * order
    done = [i for i in range(evaluations) if i == evaluations - 1 or (i + 1 > warmup and (i + 1) % order == 0)]
    begins = [0, *(i + 1 for i in done[:-1])]
    return Steps(
        timesteps,
        first,
        ends={first + i: step for step, i in enumerate(done, 1)},
        begins={step: first + i for step, i in enumerate(begins, 1)},
    )


def lacks_zero_snr(entry: SchedulerEntry, entries: Mapping[str, SchedulerEntry], model: str) -> str | None:
    """Why a scheduler does not do for a model that begins at a signal-to-noise ratio of zero; None if it does."""
    if entry.takes_zero_snr:
        return None
    able = ", ".join(sorted(name for name, each in entries.items() if each.takes_zero_snr))
    return f"{entry.name} has no {ZERO_SNR}, as the model {model} wants; {able} have"
