"""How samples begin, are predicted and are decoded: what may fail by a plugin's or a model's fault.

Functions over many samples return, for each, its result or the error that it alone failed with: a batch that fails is
run again in halves until each sample that fails is alone. They change nothing, so the others go on from where they are.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import torch

from darkroom_plugins.errors import DarkroomError, DeviceLost, NonFinite, OutOfMemory, PluginFailed
from darkroom_plugins.sample import Sample
from darkroom_server import denoise
from darkroom_server.jobs import Seat
from darkroom_server.prompts import PromptCache

log = logging.getLogger(__name__)

DECODED_AT_ONCE = 8  # pictures: bounds the memory that the VAE takes
OUT_OF_MEMORY = ("can't allocate memory", "ALLOC_FAILED")  # the CPU's allocator; cuBLAS and cuDNN

S = TypeVar("S")
T = TypeVar("T")
Outcome: TypeAlias = T | DarkroomError


def begin(seat: Seat, prompts: PromptCache) -> Sample:
    """The sample of this seat, ready for its first evaluation."""
    request, plan = seat.job.request, seat.job.plan
    sample = Sample(
        request=request,
        index=seat.index,
        model=plan.model.family,
        task=plan.task,
        conditioners=plan.conditioners,
        adapters=plan.adapters,
        scheduler=copy.deepcopy(plan.scheduler),
        timesteps=plan.steps.timesteps,
        canvas=plan.canvas,
        assets=plan.assets,
        controls=plan.controls,
        first=plan.steps.first,
        evaluation=plan.steps.first,
        table=plan.table,
    )
    sample.generator = torch.Generator().manual_seed(sample.seed)
    sample.rows = prompts.rows(sample, plan.prompts)
    for conditioner in sample.conditioners:
        conditioner.begin(sample)
    sample.task.begin(sample)
    return sample


def predict(samples: Sequence[Sample]) -> list[Outcome[torch.Tensor]]:
    """Each sample's guided prediction, (1, channels, h, w)."""
    return each_or_halves(_predict, samples)


def _predict(samples: Sequence[Sample]) -> list[torch.Tensor]:
    evaluation = denoise.gather(samples)
    for conditioner in {c.name: c for s in samples for c in s.conditioners}.values():
        conditioner.condition(evaluation)
    with contextlib.ExitStack() as adapted:
        for adapter in {a.name: a for s in samples for a in s.adapters}.values():
            adapted.enter_context(adapter.applied(samples[0].model, evaluation))
        outputs = samples[0].model.predict(evaluation)
    return denoise.scatter(samples, outputs)


def decode(samples: Sequence[Sample]) -> list[Outcome[Any]]:
    """Each sample's picture, (height, width, 3) uint8, or NonFinite."""
    return [
        NonFinite("the model's result has values that are not finite") if outcome is None else outcome
        for outcome in each_or_halves(_decode, samples, DECODED_AT_ONCE)
    ]


def _decode(samples: Sequence[Sample]) -> list[Any]:
    latents = torch.cat([sample.latents for sample in samples if sample.latents is not None])
    images = samples[0].model.decode(latents)
    finite = images.isfinite().flatten(1).all(dim=1).tolist()
    return [pixels if good else None for pixels, good in zip(denoise.to_pixels(images), finite, strict=True)]


def each_or_halves(
    run: Callable[[Sequence[S]], list[T]], items: Sequence[S], at_once: int | None = None
) -> list[Outcome[T]]:
    """What `run` makes of the items, all at once (or so many) where that works; where it does not, the error of each
    that fails.

    :raises DeviceLost: nothing works any more
    """
    if at_once is not None and len(items) > at_once:
        return [*each_or_halves(run, items[:at_once]), *each_or_halves(run, items[at_once:], at_once)]
    if not items:
        return []
    try:
        return list(run(items))
    except Exception as error:
        failure = known(error) if len(items) == 1 else _kind(error)
    # Outside the except block, whose traceback would keep the failed batch's tensors in memory.
    if isinstance(failure, DeviceLost):
        raise failure
    if len(items) == 1:
        return [failure]
    middle = len(items) // 2
    return [*each_or_halves(run, items[:middle]), *each_or_halves(run, items[middle:])]


def known(error: Exception) -> DarkroomError:
    """The domain's error for whatever a plugin or a model raised; its own words go to the log alone."""
    kind = _kind(error)
    if isinstance(kind, DeviceLost | PluginFailed) and kind is not error:
        log.error("%s", kind, exc_info=error)
    return kind


def _kind(error: Exception) -> DarkroomError:
    if isinstance(error, DarkroomError):
        return error.with_traceback(None)  # which would keep the batch's tensors
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(t in text for t in OUT_OF_MEMORY):
        return OutOfMemory("the device has too little memory for this image")
    if isinstance(error, getattr(torch, "AcceleratorError", ())) or "CUDA error" in text:
        return DeviceLost("the device failed; the server will be restarted")
    return PluginFailed("a plugin or the model failed on this image")
