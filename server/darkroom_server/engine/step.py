"""Guidance and the scheduler's step of a batch's samples: all at once by tables of coefficients, where there are any,
else by each sample's own scheduler object."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from darkroom_plugins import calls
from darkroom_plugins.contract import SchedulerEntry
from darkroom_plugins.errors import DarkroomError
from darkroom_plugins.sample import Sample
from darkroom_plugins.tensors import to_device
from darkroom_server.engine.recovery import Outcome, Recovery, work
from darkroom_server.errors import to_domain_error
from darkroom_server.schedulers.scheduler import clean_estimate, copy_scheduler, step_arguments
from darkroom_server.schedulers.tables import Floats, Step, fill, read

log = logging.getLogger(__name__)

Estimate: TypeAlias = torch.Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """What one sample's step begins with."""

    sample: Sample
    entry: SchedulerEntry
    coefficients: Step | None  # of this step; None: its scheduler object takes it
    outputs: Sequence[torch.Tensor]  # the denoiser's, of each of its rows: (1, channels, h, w)
    want_estimate: bool


@dataclass(frozen=True, slots=True, eq=False)
class Stepped:
    """What a step came to; its sample does not have it yet."""

    scheduler: Any
    generator: torch.Generator
    latents: torch.Tensor  # (1, channels, h, w)
    clean: Callable[[], torch.Tensor] | None  # the estimate of the clean latents, of this shape, where it is wanted


def advance(turns: Sequence[Turn], recovery: Recovery) -> list[Outcome[Estimate]]:
    """Take one evaluation's step of each of a batch's samples.

    Returns, for each, the estimate of its clean latents, (1, channels, h, w), where it is wanted, or the error that it
    failed with; a sample that failed is as it was.
    """
    stepped: dict[Turn, Outcome[Stepped]] = {}
    for way, take in (("table", _by_table), ("object", _by_object)):
        part = [turn for turn in turns if (turn.coefficients is not None) is (take is _by_table)]
        if part:
            outcomes = recovery.each(work(f"step by {way}", part[0].sample.request), take, part)
            stepped.update(zip(part, outcomes, strict=True))
    return [_finish(turn.sample, stepped[turn], recovery) for turn in turns]


def _finish(sample: Sample, stepped: Outcome[Stepped], recovery: Recovery) -> Outcome[Estimate]:
    if isinstance(stepped, DarkroomError):
        return stepped
    try:
        return recovery.once(partial(commit, sample, stepped))
    except BaseException as error:
        return to_domain_error(error)


def guide(turns: Sequence[Turn]) -> list[torch.Tensor]:
    """Classifier-free guidance (Ho and Salimans 2022) of each sample's rows, (1, channels, h, w), the unconditional one
    first; with rescale as Lin et al. 2023, section 3.4. A single row stays as it is."""
    pairs = {turn: turn.outputs for turn in turns if len(turn.outputs) == 2}
    if not pairs:
        return [turn.outputs[0] for turn in turns]
    unconditional, conditional = (torch.cat(rows) for rows in zip(*pairs.values(), strict=True))
    scales = torch.tensor([turn.sample.request.guidance_scale for turn in pairs]).view(-1, 1, 1, 1)
    towards = to_device(scales, conditional.device) * (conditional - unconditional)
    guided = dict(zip(pairs, (unconditional + towards.to(unconditional.dtype)).split(1), strict=True))
    for turn in pairs:
        if rescale := turn.sample.request.guidance_rescale:
            guided[turn] = rescale_noise_cfg(guided[turn], turn.outputs[1], guidance_rescale=rescale)
    return [guided.get(turn, turn.outputs[0]) for turn in turns]


def _by_object(turns: Sequence[Turn]) -> list[Stepped]:
    stepped = []
    for turn, output in zip(turns, guide(turns), strict=True):
        with calls.calling(turn.entry, "step"):
            stepped.append(_step(turn.sample, output, turn.want_estimate))
    return stepped


def _step(sample: Sample, output: torch.Tensor, want_estimate: bool) -> Stepped:
    """By a copy of the sample's own scheduler."""
    scheduler, generator = copy_scheduler(sample.scheduler), sample.generator.clone_state()
    arguments = step_arguments(scheduler, generator, sample.request.eta)
    result = scheduler.step(output, sample.timestep, sample.latents, **arguments)
    clean = partial(clean_estimate, scheduler, sample.timestep, sample.latents, result, output)
    return Stepped(scheduler, generator, result.prev_sample, clean if want_estimate else None)


def _by_table(turns: Sequence[Turn]) -> list[Stepped]:
    """One multiply-add for all: each result is the sum of its sample's terms, times their coefficients."""
    batch = [(turn, turn.coefficients) for turn in turns if turn.coefficients is not None]
    generators, noise = _draw(batch)
    terms = []
    for (turn, step), output in zip(batch, guide(turns), strict=True):
        kept = [read(turn.sample.scheduler, slot) for slot in step.slots]
        terms.append([turn.sample.latents, output, *kept, *(next(noise) for _ in step.draws)])
    results = _combine(
        [step.coefficients if turn.want_estimate else step.coefficients[:-1] for turn, step in batch],
        [[tensors[index] for index in step.used] for (_, step), tensors in zip(batch, terms, strict=True)],
    )
    return list(map(_stepped, batch, generators, terms, results))


def _stepped(
    each: tuple[Turn, Step], generator: torch.Generator, terms: list[torch.Tensor], made: Sequence[torch.Tensor]
) -> Stepped:
    turn, step = each
    scheduler = copy_scheduler(turn.sample.scheduler)
    tensors = [*terms, *made]
    vars(scheduler).update((name, fill(value, tensors)) for name, value in step.changes.items())
    estimate = made[len(step.coefficients) - 1] if turn.want_estimate else None
    return Stepped(scheduler, generator, made[0], None if estimate is None else lambda: estimate)


def _draw(batch: Sequence[tuple[Turn, Step]]) -> tuple[list[torch.Generator], Iterator[torch.Tensor]]:
    """The generators as they are after each sample's draws; the draws, (1, channels, h, w), on the latents' device."""
    generators, noise = [], []
    for turn, step in batch:
        latents, generator = turn.sample.latents, turn.sample.generator
        generators.append(generator.clone_state() if step.draws else generator)
        for dtype in step.draws:  # as diffusers draws: on the CPU, in this shape and dtype
            dtype = dtype or turn.outputs[0].dtype
            noise.append(torch.randn(latents.shape, generator=generators[-1], dtype=dtype))
    return generators, iter(to_device(torch.cat(noise), batch[0][0].outputs[0].device).split(1) if noise else ())


def _combine(coefficients: Sequence[Floats], terms: Sequence[list[torch.Tensor]]) -> list[tuple[torch.Tensor, ...]]:
    """The results of each sample, (1, channels, h, w) of its latents' dtype, computed in single precision or better."""
    latents = terms[0][0]
    widest = max(map(len, terms))
    padded = np.zeros((len(terms), max(map(len, coefficients)), widest))
    for matrix, each in zip(padded, coefficients, strict=True):
        matrix[: each.shape[0], : each.shape[1]] = each
    stacked = torch.cat([tensor for each in terms for tensor in (*each, *each[:1] * (widest - len(each)))])
    precision = torch.promote_types(stacked.dtype, torch.float32)
    factors = to_device(torch.from_numpy(padded).to(precision), latents.device)
    stacked = stacked.to(precision).reshape(len(terms), 1, widest, -1)
    # Not a matrix product, which a process may have set to lower precision.
    results = factors[:, :, :1] * stacked[:, :, 0]
    for index in range(1, widest):
        results.addcmul_(factors[:, :, index : index + 1], stacked[:, :, index])
    made = results.to(latents.dtype).view(-1, *latents.shape).unbind()
    rows = padded.shape[1]
    return [made[start : start + rows] for start in range(0, len(made), rows)]


def commit(sample: Sample, stepped: Stepped) -> Estimate:
    """Give a sample what its step came to: scheduler, generator and latents change together, or not at all.

    Returns the estimate of the clean latents as its task makes it, where there is one.
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
    except BaseException as error:  # of a plugin: the picture does not depend on it
        log.warning("no preview under %s: %r", type(sample.scheduler).__name__, error)
        return None
