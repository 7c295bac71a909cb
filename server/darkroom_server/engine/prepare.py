"""Prepares samples for their first evaluation."""

from __future__ import annotations

from dataclasses import replace

import torch

from darkroom_plugins import calls
from darkroom_plugins.contract import Inspector
from darkroom_plugins.sample import Sample
from darkroom_server.engine.slot import Slot
from darkroom_server.schedulers.scheduler import begin_at


def make_sample(slot: Slot) -> Sample:
    """The sample of this slot, without prompt embeddings and latents."""
    request, plan = slot.job.request, slot.job.plan
    return Sample(
        request=request,
        index=slot.index,
        model=plan.model.family,
        task=plan.task,
        conditioners=plan.conditioners,
        adapters=plan.adapters,
        inspectors=tuple(finisher for finisher in plan.finishers if isinstance(finisher, Inspector)),
        scheduler=begin_at(plan.scheduler, plan.steps.first),
        timesteps=plan.steps.timesteps,
        canvas=plan.canvas,
        assets=plan.assets,
        generator=torch.Generator(),
        controls=plan.controls,
        first=plan.steps.first,
        evaluation=plan.steps.first,
    )


def begin(encoded: Sample) -> Sample:
    """A copy with initial latents. The argument is unchanged, so that this can be retried."""
    sample = replace(encoded, generator=torch.Generator().manual_seed(encoded.seed), state={})
    calls.begin(sample)
    return sample
