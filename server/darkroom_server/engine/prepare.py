"""Prepares samples for their first evaluation."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

import torch

from darkroom_plugins import calls
from darkroom_plugins.contract import Inspector
from darkroom_plugins.sample import Sample
from darkroom_plugins.upscaling import upscales_pixels
from darkroom_server.engine.long_work import LongWork
from darkroom_server.engine.recovery import Recovery
from darkroom_server.engine.slot import Slot
from darkroom_server.errors import OutOfMemory, classify
from darkroom_server.schedulers.scheduler import begin_at


def make_sample(slot: Slot) -> Sample:
    """The sample of this slot, without prompt embeddings and latents."""
    plan = slot.plan
    return Sample(
        request=plan.request,
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
        bucket=plan.bucket,
        controls=plan.controls,
        first=plan.steps.first,
        evaluation=plan.steps.first,
        first_stage=slot.first_stage,
    )


class Starter:
    """Gives samples their first latents."""

    def __init__(self, recovery: Recovery, long: LongWork) -> None:
        self._recovery, self._long = recovery, long

    def begin(self, slot: Slot, encoded: Sample) -> tuple[Sample, bool]:
        """A copy of a slot's sample with initial latents, and whether its pictures were encoded in tiles: where the
        plan says so, or they do not fit into memory whole."""
        if encoded.request.image is None and not upscales_pixels(encoded):
            return self._recovery.once(partial(_begin, encoded)), False
        tiling = calls.tiling(encoded.model, encoded.request)
        if tiling is None or not slot.plan.tiled:
            try:
                return self._begin(slot, encoded, None), False
            except BaseException as error:
                if tiling is None or not isinstance(classify(error), OutOfMemory):
                    raise
        return self._begin(slot, encoded, tiling), True

    def _begin(self, slot: Slot, encoded: Sample, tiling: AbstractContextManager[None] | None) -> Sample:
        with self._long.divided("encode", [slot], shared=True, tiling=tiling):
            return self._recovery.once(partial(_begin, encoded))


def _begin(encoded: Sample) -> Sample:
    """The argument is unchanged, so that this can be retried."""
    sample = replace(encoded, generator=torch.Generator().manual_seed(encoded.seed), state={}, warnings=[])
    calls.begin(sample)
    return sample
