"""How samples begin, are predicted and are decoded: what may fail by a plugin's or a model's fault.

Functions over many samples return, for each, its result or the error that it alone failed with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch

from darkroom_plugins.contract import Inspector
from darkroom_plugins.errors import DarkroomError, NonFinite
from darkroom_plugins.request import Request
from darkroom_plugins.sample import Row, Sample
from darkroom_server.device.transfer import Arriving, beside, to_pictures
from darkroom_server.engine import denoise
from darkroom_server.engine.recovery import Outcome, Recovery
from darkroom_server.errors import OutOfMemory
from darkroom_server.jobs.job import Seat

DECODED_AT_ONCE = 8  # pictures: bounds the memory that the VAE takes


@dataclass(frozen=True, slots=True)
class Decoded:
    """A sample's picture."""

    picture: Arriving
    tiled: bool = False  # whether it was put together from tiles, for want of memory
    findings: dict[str, Any] = field(default_factory=dict)  # of inspectors, by name


def work(kind: str, request: Request) -> Hashable:
    """What decides how many rows of this kind of work fit into memory."""
    return (kind, request.model, request.width, request.height)


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
        scheduler=denoise.begin_at(plan.scheduler, plan.steps.first),
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


def predict(samples: Sequence[Sample], recovery: Recovery) -> list[Outcome[list[torch.Tensor]]]:
    """The denoiser's output for each row of each sample, (1, channels, h, w)."""
    rows = [row for sample in samples for row in denoise.rows_of(sample)]
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
    evaluation = denoise.gather(rows)
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


def decode(samples: Sequence[Sample], recovery: Recovery, aside: bool) -> list[Outcome[Decoded]]:
    """Each sample's picture, with what inspectors found in it. One that does not fit into memory even alone is made in
    tiles. With `aside` a CUDA device goes on with other work meanwhile, which must leave the weights where they are."""
    if not samples:
        return []
    latents = [sample.latents for sample in samples if sample.latents is not None]
    with beside(samples[0].model.device, latents) if aside else contextlib.nullcontext():
        whole = recovery.each(work("decode", samples[0].request), _decode, samples, DECODED_AT_ONCE)
        return [
            _in_tiles(sample, outcome, recovery) if isinstance(outcome, OutOfMemory) else outcome
            for sample, outcome in zip(samples, whole, strict=True)
        ]


def _decode(samples: Sequence[Sample]) -> list[Decoded]:
    latents = torch.cat([sample.latents for sample in samples if sample.latents is not None])
    return _pictures(samples, samples[0].model.decode(latents))


def _in_tiles(sample: Sample, failure: OutOfMemory, recovery: Recovery) -> Outcome[Decoded]:
    """Its picture in tiles; the failure where its model makes none of this size."""
    (outcome,) = recovery.each(work("tiles", sample.request), _decode_tiled, [sample])
    if isinstance(outcome, Decoded):
        recovery.limits.exclude(work("decode", sample.request))
    return failure if outcome is None else outcome


def _decode_tiled(samples: Sequence[Sample]) -> list[Decoded | None]:
    (sample,) = samples
    assert sample.latents is not None
    images = sample.model.decode_tiled(sample.latents)
    return [None] if images is None else [*_pictures(samples, images, tiled=True)]


def _pictures(samples: Sequence[Sample], images: torch.Tensor, tiled: bool = False) -> list[Decoded]:
    decoded = [Decoded(picture, tiled) for picture in to_pictures(images)]
    for inspector in {i.name: i for sample in samples for i in sample.inspectors}.values():
        pairs = zip(samples, decoded, strict=True)
        _inspect(inspector, [(sample, each) for sample, each in pairs if inspector in sample.inspectors])
    return decoded


def _inspect(inspector: Inspector, decoded: Sequence[tuple[Sample, Decoded]]) -> None:
    """Keep with each picture what this inspector finds in it. It has to wait for them."""
    read = []
    for sample, each in decoded:
        with contextlib.suppress(NonFinite):  # who reads it later is told
            read.append((sample, each, each.picture.read()))
    if not read:
        return
    found = inspector.inspect([sample for sample, _, _ in read], [pixels for *_, pixels in read])
    for (_, each, _), finding in zip(read, found, strict=True):
        each.findings[inspector.name] = finding
