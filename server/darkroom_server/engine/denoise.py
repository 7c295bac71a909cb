"""The numbers of one step: an evaluation over the rows of many samples, then each sample's own update."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch

from darkroom_plugins.errors import DarkroomError
from darkroom_plugins.sample import Evaluation, Row, Sample, own_prompts
from darkroom_plugins.tensors import to_device
from darkroom_server.engine.recovery import Outcome, Recovery, work

log = logging.getLogger(__name__)


def rows_of(sample: Sample) -> list[Row]:
    """The rows of a sample's next evaluation, the unconditional one first where there is guidance."""
    prompts = sample.conditions
    guided = len(prompts) == 2
    return [Row(sample, prompt, unconditional=guided and n == 0) for n, prompt in enumerate(prompts)]


def gather(rows: Sequence[Row]) -> Evaluation:
    """The evaluation of these rows, each at its own timestep. Changes nothing in their samples but what the
    first keeps of all."""
    samples = {sample: number for number, sample in enumerate(dict.fromkeys(row.sample for row in rows))}
    constants = rows[0].sample.constants
    numbers = [samples[row.sample] for row in rows]
    scaled = _scaled(list(samples))
    latents = torch.cat([scaled[number] for number in numbers])
    times = [float(sample.timestep) for sample in samples]
    timesteps = to_device(torch.tensor([times[number] for number in numbers]), latents.device)
    extra = [row.sample.extra_channels for row in rows if row.sample.extra_channels is not None]
    return Evaluation(
        list(rows),
        latents,
        timesteps,
        prompts=own_prompts(rows, constants),
        extra_channels=constants.of("extra channels", torch.cat, extra) if extra else None,
        constants=constants,
    )


def _scaled(samples: Sequence[Sample]) -> Sequence[torch.Tensor]:
    """Each sample's latents, (1, channels, h, w), as the denoiser takes them."""
    scales, latents = [], []
    for sample in samples:
        assert sample.latents is not None
        step = sample.table.get(sample.evaluation)
        scales.append(1.0 if step is None else step.scale)
        own = step is None
        latents.append(sample.scheduler.scale_model_input(sample.latents, sample.timestep) if own else sample.latents)
    if all(scale == 1.0 for scale in scales):
        return latents
    together = torch.cat(latents)
    factors = to_device(torch.tensor(scales), together.device).view(-1, 1, 1, 1)
    return list((together * factors).to(together.dtype).split(1))


def _step_arguments(scheduler: Any) -> frozenset[str]:
    return frozenset(inspect.signature(scheduler.step).parameters)


def predict(samples: Sequence[Sample], recovery: Recovery) -> list[Outcome[list[torch.Tensor]]]:
    """The denoiser's output for each row of each sample, (1, channels, h, w)."""
    rows = [row for sample in samples for row in rows_of(sample)]
    outcomes = recovery.each(work("denoise", samples[0].request), _predict, rows)
    remaining = iter(outcomes)
    return [_together(list(islice(remaining, len(sample.conditions)))) for sample in samples]


def _predict(rows: Sequence[Row]) -> list[torch.Tensor]:
    outputs: dict[Row, torch.Tensor] = {}
    for reuses in (False, True):
        alike = [row for row in rows if row.reuses is reuses]
        outputs.update(zip(alike, _evaluate(alike), strict=True) if alike else ())
    return [outputs[row] for row in rows]


def _evaluate(rows: Sequence[Row]) -> list[torch.Tensor]:
    evaluation = gather(rows)
    samples = list(dict.fromkeys(row.sample for row in rows))
    for conditioner in {c.name: c for s in samples for c in s.conditioners}.values():
        conditioner.condition(evaluation)
    with contextlib.ExitStack() as adapted:
        for adapter in {a.name: a for s in samples for a in s.adapters}.values():
            adapted.enter_context(adapter.applied(samples[0].model, evaluation))
        outputs = samples[0].model.predict(evaluation)
    return list(outputs.split(1))


def _together(outcomes: Sequence[Outcome[torch.Tensor]]) -> Outcome[list[torch.Tensor]]:
    """The rows of one sample, which fails with any of them."""
    outputs = []
    for outcome in outcomes:
        if isinstance(outcome, DarkroomError):
            return outcome
        outputs.append(outcome)
    return outputs
