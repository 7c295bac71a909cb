"""How samples begin, are predicted and are decoded: what may fail by a plugin's or a model's fault.

Functions over many samples return, for each, its result or the error that it alone failed with.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from darkroom_plugins.contract import Inspector
from darkroom_plugins.sample import Sample
from darkroom_server.engine.seat import Seat
from darkroom_server.schedulers.scheduler import begin_at


def seated(seat: Seat) -> Sample:
    """The sample of this seat, as it is before anything is made for it."""
    request, plan = seat.job.request, seat.job.plan
    return Sample(
        request=request,
        index=seat.index,
        model=plan.model.family,
        task=plan.task,
        conditioners=plan.conditioners,
        adapters=plan.adapters,
        inspectors=tuple(finisher for finisher, _ in plan.finishers if isinstance(finisher, Inspector)),
        scheduler=begin_at(plan.scheduler, plan.steps.first),
        timesteps=plan.steps.timesteps,
        canvas=plan.canvas,
        assets=plan.assets,
        controls=plan.controls,
        first=plan.steps.first,
        evaluation=plan.steps.first,
        table=plan.table,
    )


def begin(encoded: Sample) -> Sample:
    """The same ready for its first evaluation."""
    generator = torch.Generator().manual_seed(encoded.seed)
    sample = replace(encoded, generator=generator, state={})
    for conditioner in sample.conditioners:
        conditioner.begin(sample)
    sample.task.begin(sample)
    return sample
