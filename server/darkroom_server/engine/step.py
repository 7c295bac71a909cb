"""Classifier-free guidance and scheduler steps of a batch: vectorized for samples with a table of coefficients, one by
one through scheduler objects for the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch

from darkroom_plugins import calls
from darkroom_plugins.contract import SchedulerEntry
from darkroom_plugins.errors import DarkroomError
from darkroom_plugins.sample import Sample
from darkroom_plugins.tensors import constant, to_device
from darkroom_server.engine.recovery import Outcome, Recovery, work
from darkroom_server.errors import to_domain_error
from darkroom_server.schedulers.scheduler import clean_estimate, copy_scheduler, step_arguments
from darkroom_server.schedulers.tables import Floats, Step, fill, read

log = logging.getLogger(__name__)

Estimate: TypeAlias = torch.Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class StepInput:
    """The inputs of one sample's scheduler step."""

    sample: Sample
    entry: SchedulerEntry
    coefficients: Step | None  # of this step; None: the scheduler object steps
    outputs: Sequence[torch.Tensor]  # of the denoiser, one a row: (1, channels, h, w)
    want_estimate: bool


@dataclass(frozen=True, slots=True, eq=False)
class StepResult:
    """The result of a step, before `commit` writes it to the sample."""

    scheduler: Any
    generator: torch.Generator
    latents: torch.Tensor  # (1, channels, h, w)
    clean: Callable[[], torch.Tensor] | None  # the estimate of the clean latents, same shape, if requested


def advance(inputs: Sequence[StepInput], recovery: Recovery) -> list[Outcome[Estimate]]:
    """Step each sample of a batch by one evaluation.

    Returns, for each, the requested estimate of clean latents, (1, channels, h, w), or its error; a failed sample is
    unchanged.
    """
    stepped: dict[StepInput, Outcome[StepResult]] = {}
    for kind, step in (("table", _by_table), ("object", _by_object)):
        part = [item for item in inputs if (item.coefficients is not None) is (step is _by_table)]
        if part:
            outcomes = recovery.each(work(f"step by {kind}", part[0].sample.request), step, part)
            stepped.update(zip(part, outcomes, strict=True))
    return [_finish(item.sample, stepped[item], recovery) for item in inputs]


def _finish(sample: Sample, stepped: Outcome[StepResult], recovery: Recovery) -> Outcome[Estimate]:
    if isinstance(stepped, DarkroomError):
        return stepped
    try:
        return recovery.once(partial(commit, sample, stepped))
    except BaseException as error:
        return to_domain_error(error)


def guide(inputs: Sequence[StepInput]) -> list[torch.Tensor]:
    """Classifier-free guidance (Ho and Salimans 2022) of each sample's rows, (1, channels, h, w), the unconditional one
    first; with rescale as Lin et al. 2023, section 3.4. A single row stays as it is."""
    pairs = {item: item.outputs for item in inputs if len(item.outputs) == 2}
    if not pairs:
        return [item.outputs[0] for item in inputs]
    unconditional, conditional = (torch.cat(rows) for rows in zip(*pairs.values(), strict=True))
    scales = constant([float(item.sample.request.guidance_scale) for item in pairs], conditional.device)
    towards = scales.view(-1, 1, 1, 1) * (conditional - unconditional)
    guided = dict(zip(pairs, (unconditional + towards.to(unconditional.dtype)).split(1), strict=True))
    for item in pairs:
        if rescale := item.sample.request.guidance_rescale:
            guided[item] = _rescaled(guided[item], item.outputs[1], rescale)
    return [guided.get(item, item.outputs[0]) for item in inputs]


def _rescaled(guided: torch.Tensor, conditional: torch.Tensor, rescale: float) -> torch.Tensor:
    """(1, channels, h, w): in part of the conditional prediction's spread (Lin et al. 2024, section 3.4)."""
    dims = tuple(range(1, guided.ndim))
    spread = conditional.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
    return rescale * (guided * spread) + (1 - rescale) * guided


def _by_object(inputs: Sequence[StepInput]) -> list[StepResult]:
    stepped = []
    for item, output in zip(inputs, guide(inputs), strict=True):
        with calls.calling(item.entry, "step"):
            stepped.append(_step(item.sample, output, item.want_estimate))
    return stepped


def _step(sample: Sample, output: torch.Tensor, want_estimate: bool) -> StepResult:
    """One step on a copy of the sample's scheduler."""
    scheduler, generator = copy_scheduler(sample.scheduler), sample.generator.clone_state()
    arguments = step_arguments(scheduler, generator, sample.request.eta)
    result = scheduler.step(output, sample.timestep, sample.latents, **arguments)
    clean = partial(clean_estimate, scheduler, sample.timestep, sample.latents, result, output)
    return StepResult(scheduler, generator, result.prev_sample, clean if want_estimate else None)


def _by_table(inputs: Sequence[StepInput]) -> list[StepResult]:
    """One multiply-add for the batch: each result is a linear combination of its sample's terms."""
    batch = [(item, item.coefficients) for item in inputs if item.coefficients is not None]
    generators, noise = _draw(batch)
    terms = []
    for (item, step), output in zip(batch, guide(inputs), strict=True):
        kept = [read(item.sample.scheduler, slot) for slot in step.slots]
        terms.append([item.sample.latents, output, *kept, *(next(noise) for _ in step.draws)])
    results = _combine(
        [step.coefficients if item.want_estimate else step.coefficients[:-1] for item, step in batch],
        [[tensors[index] for index in step.used] for (_, step), tensors in zip(batch, terms, strict=True)],
    )
    return list(map(_result, batch, generators, terms, results))


def _result(
    each: tuple[StepInput, Step], generator: torch.Generator, terms: list[torch.Tensor], made: Sequence[torch.Tensor]
) -> StepResult:
    item, step = each
    scheduler = copy_scheduler(item.sample.scheduler)
    tensors = [*terms, *made]
    vars(scheduler).update((name, fill(value, tensors)) for name, value in step.changes.items())
    estimate = made[len(step.coefficients) - 1] if item.want_estimate else None
    return StepResult(scheduler, generator, made[0], None if estimate is None else lambda: estimate)


def _draw(batch: Sequence[tuple[StepInput, Step]]) -> tuple[list[torch.Generator], Iterator[torch.Tensor]]:
    """The generators after each sample's draws; the noise, (1, channels, h, w) each, on the latents' device."""
    generators, noise = [], []
    for item, step in batch:
        latents, generator = item.sample.latents, item.sample.generator
        generators.append(generator.clone_state() if step.draws else generator)
        for dtype in step.draws:  # like diffusers: on the CPU, in this shape and dtype
            dtype = dtype or item.outputs[0].dtype
            noise.append(torch.randn(latents.shape, generator=generators[-1], dtype=dtype))
    return generators, iter(to_device(torch.cat(noise), batch[0][0].outputs[0].device).split(1) if noise else ())


def _combine(coefficients: Sequence[Floats], terms: Sequence[list[torch.Tensor]]) -> list[tuple[torch.Tensor, ...]]:
    """The results of each sample, (1, channels, h, w) in its latents' dtype, computed in at least float32."""
    latents = terms[0][0]
    widest = max(map(len, terms))
    padded = np.zeros((len(terms), max(map(len, coefficients)), widest))
    for matrix, each in zip(padded, coefficients, strict=True):
        matrix[: each.shape[0], : each.shape[1]] = each
    stacked = torch.cat([tensor for each in terms for tensor in (*each, *each[:1] * (widest - len(each)))])
    precision = torch.promote_types(stacked.dtype, torch.float32)
    factors = to_device(torch.from_numpy(padded).to(precision), latents.device)
    stacked = stacked.to(precision).reshape(len(terms), 1, widest, -1)
    # Not a matrix product, whose precision is a setting of the process (TF32).
    results = factors[:, :, :1] * stacked[:, :, 0]
    for index in range(1, widest):
        results.addcmul_(factors[:, :, index : index + 1], stacked[:, :, index])
    made = results.to(latents.dtype).view(-1, *latents.shape).unbind()
    rows = padded.shape[1]
    return [made[start : start + rows] for start in range(0, len(made), rows)]


def commit(sample: Sample, stepped: StepResult) -> Estimate:
    """Write a step's result to its sample, atomically: scheduler, generator and latents, or nothing.

    Returns the task's estimate of clean latents, if requested.
    """
    before = sample.scheduler, sample.generator, sample.latents
    sample.scheduler, sample.generator = stepped.scheduler, stepped.generator
    try:
        estimate = _estimate(sample, stepped.clean) if stepped.clean else None
        sample.latents = calls.after_evaluation(sample, stepped.latents)
    except BaseException:
        sample.scheduler, sample.generator, sample.latents = before
        raise
    sample.evaluation += 1
    return estimate


def _estimate(sample: Sample, clean: Callable[[], torch.Tensor]) -> Estimate:
    try:
        return sample.task.estimate(sample, clean(), calls.parameters_of(sample.task, sample.request))
    except BaseException as error:  # of a plugin; only the preview depends on it
        log.warning("no preview under %s: %r", type(sample.scheduler).__name__, error)
        return None
