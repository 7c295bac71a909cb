"""The schedulers' steps of many samples: together where tables of their coefficients are there, else one by one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from darkroom_plugins.errors import DarkroomError
from darkroom_plugins.sample import Sample
from darkroom_server import denoise
from darkroom_server.sampling import Outcome, each_or_halves, known
from darkroom_server.tables import Step, fill, read

Estimate: TypeAlias = torch.Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """What one sample's step begins with."""

    sample: Sample
    output: torch.Tensor  # (1, channels, h, w), guided
    want_estimate: bool


@dataclass(frozen=True, slots=True, eq=False)
class Stepped:
    """What a step by table came to; the sample does not have it yet."""

    scheduler: Any
    generator: torch.Generator
    latents: torch.Tensor  # (1, channels, h, w)
    estimate: Estimate


def advance_all(
    samples: Sequence[Sample], outputs: Sequence[torch.Tensor], want_estimates: Sequence[bool]
) -> list[Outcome[Estimate]]:
    """Take one evaluation's step of each of a batch's samples, as `denoise.advance` does of one.

    Returns, for each, the estimate of its clean latents, (1, channels, h, w), where it is wanted, or the error that it
    failed with; a sample that failed is as it was.
    """
    turns = [Turn(*each) for each in zip(samples, outputs, want_estimates, strict=True)]
    # Looked up once, for tables fill up beside the loop.
    steps: list[Step | None] = [sample.table.get(sample.evaluation) for sample in samples]
    tabled = [(turn, step) for turn, step in zip(turns, steps, strict=True) if step is not None]
    outcomes = each_or_halves(_step, tabled)
    stepped = iter(outcomes)
    return [_advance(turn, None if step is None else next(stepped)) for turn, step in zip(turns, steps, strict=True)]


def _advance(turn: Turn, stepped: Outcome[Stepped] | None) -> Outcome[Estimate]:
    try:
        if stepped is None:
            return denoise.advance(turn.sample, turn.output, turn.want_estimate)
        if isinstance(stepped, DarkroomError):
            return stepped
        estimate = stepped.estimate
        clean = None if estimate is None else lambda: estimate
        return denoise.commit(turn.sample, stepped.scheduler, stepped.generator, stepped.latents, clean)
    except Exception as error:
        return known(error)


def _step(batch: Sequence[tuple[Turn, Step]]) -> list[Stepped]:
    """One multiply-add for all: each result is the sum of its sample's terms, times their coefficients."""
    generators, terms = _terms(batch)
    results = _combine(
        [step.coefficients if turn.want_estimate else step.coefficients[:-1] for turn, step in batch],
        [[tensors[index] for index in step.used] for (_, step), tensors in zip(batch, terms, strict=True)],
    )
    stepped = []
    for (turn, step), generator, tensors, made in zip(batch, generators, terms, results, strict=True):
        scheduler = copy.copy(turn.sample.scheduler)
        tensors += made
        vars(scheduler).update((name, fill(value, tensors)) for name, value in step.changes.items())
        estimate = made[len(step.coefficients) - 1] if turn.want_estimate else None
        stepped.append(Stepped(scheduler, generator, made[0], estimate))
    return stepped


def _terms(batch: Sequence[tuple[Turn, Step]]) -> tuple[list[torch.Generator], list[list[torch.Tensor]]]:
    """The generators after each sample's draws, and its terms, on its device."""
    generators, noise, terms = [], [], []
    for turn, step in batch:
        sample, latents = turn.sample, turn.sample.latents
        assert sample.generator is not None
        assert latents is not None
        generators.append(sample.generator.clone_state() if step.draws else sample.generator)
        for dtype in step.draws:  # as diffusers draws: on the CPU, in this shape and dtype
            noise.append(torch.randn(latents.shape, generator=generators[-1], dtype=dtype or turn.output.dtype))
        terms.append([latents, turn.output, *(read(sample.scheduler, slot) for slot in step.slots)])
    moved = iter(_to(torch.cat(noise), terms[0][0].device).split(1) if noise else ())
    for (_, step), tensors in zip(batch, terms, strict=True):
        tensors += (next(moved) for _ in step.draws)
    return generators, terms


def _combine(coefficients: Sequence[Any], terms: Sequence[list[torch.Tensor]]) -> list[tuple[torch.Tensor, ...]]:
    """The results of each sample, (1, channels, h, w) of its latents' dtype, computed in single precision or better."""
    latents = terms[0][0]
    widest = max(map(len, terms))
    padded = np.zeros((len(terms), max(map(len, coefficients)), widest))
    for matrix, each in zip(padded, coefficients, strict=True):
        matrix[: each.shape[0], : each.shape[1]] = each
    stacked = torch.cat([tensor for each in terms for tensor in each + each[:1] * (widest - len(each))])
    precision = torch.promote_types(stacked.dtype, torch.float32)
    factors = _to(torch.from_numpy(padded).to(precision), latents.device)
    stacked = stacked.to(precision).view(len(terms), 1, widest, -1)
    # Not a matrix product, which a process may have set to lower precision.
    results = factors[:, :, :1] * stacked[:, :, 0]
    for index in range(1, widest):
        results.addcmul_(factors[:, :, index : index + 1], stacked[:, :, index])
    made = results.to(latents.dtype).view(-1, *latents.shape).unbind()
    rows = padded.shape[1]
    return [made[start : start + rows] for start in range(0, len(made), rows)]


def _to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on a device, without waiting for it."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
