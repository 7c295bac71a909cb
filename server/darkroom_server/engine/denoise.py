"""One evaluation of the denoiser on a batch: the rows of many samples."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from itertools import islice
from typing import TypeAlias

import torch

from darkroom_plugins import calls
from darkroom_plugins.contract import Adapter, Conditioner
from darkroom_plugins.errors import DarkroomError
from darkroom_plugins.sample import Evaluation, Row, Sample, own_prompts
from darkroom_plugins.tensors import to_device
from darkroom_server.engine.buckets import Buckets, filled, in_sizes
from darkroom_server.engine.recovery import Outcome, Recovery, work
from darkroom_server.engine.slot import Slot, announce
from darkroom_server.networks.compiled import eagerly

SlotRow: TypeAlias = tuple[Slot, Row]
Company: TypeAlias = tuple[tuple[str, Hashable], ...]  # by conditioner and adapter


def predict(
    begun: Sequence[tuple[Slot, Sample]], recovery: Recovery, buckets: Buckets
) -> list[Outcome[list[torch.Tensor]]]:
    """The denoiser's output for each row of each sample, (1, channels, h, w) each."""
    rows = [(slot, row) for slot, sample in begun for row in rows_of(sample)]
    denoising = work("denoise", begun[0][1].request)
    fitting = recovery.limits.of(denoising, sys.maxsize)

    def evaluate(part: Sequence[SlotRow]) -> list[torch.Tensor]:
        # After a failure no rows are repeated, which may be why there was no memory.
        return _predict(buckets, part, fitting if len(part) == len(rows) else len(part))

    found = recovery.each(denoising, evaluate, rows, suspected=_suspected)
    outcomes = iter(found)
    return [_sample_outputs(list(islice(outcomes, len(sample.conditions)))) for _, sample in begun]


def rows_of(sample: Sample) -> list[Row]:
    """The rows of a sample's next evaluation: under guidance the unconditional, then the conditional one."""
    prompts = sample.conditions
    guided = len(prompts) == 2
    return [Row(sample, prompt, unconditional=guided and n == 0) for n, prompt in enumerate(prompts)]


def _suspected(error: DarkroomError, row: SlotRow) -> bool:
    """Whether a row may be the cause: where a conditioner or an adapter failed, those that it was called for."""
    culprit = getattr(error, "contribution", None)
    if not isinstance(culprit, Conditioner | Adapter):
        return True
    sample = row[1].sample
    return culprit in (*sample.conditioners, *sample.adapters)


def _predict(buckets: Buckets, rows: Sequence[SlotRow], most: int) -> list[torch.Tensor]:
    """`most`: rows to evaluate at once, repeated ones included; deterministic ones at least in their bucket."""
    parts: dict[tuple[Hashable, Company, bool], list[SlotRow]] = {}  # by structure, company, and whether it is adapted
    for slot, row in rows:
        company = _company(row) if slot.plan.bucket else ()
        # Adapters change layers, with which no compiled code runs: other rows need not share that.
        adapted = bool(slot.plan.model.settings.compile and row.sample.adapters)
        parts.setdefault((row.sample.model.structure(row), company, adapted), []).append((slot, row))
    outputs = {
        row: output
        for (structure, company, _), part in parts.items()
        for (_, row), output in zip(part, _outputs(part, structure, company, buckets, most), strict=True)
    }
    return [outputs[row] for _, row in rows]


def _company(row: Row) -> Company:
    """With which rows a deterministic one may share an evaluation."""
    found: list[tuple[str, Hashable]] = []
    conditioners = [c for c in row.sample.conditioners if type(c).condition is not Conditioner.condition]
    for part in (*conditioners, *row.sample.adapters):
        with calls.calling(part, "company"):
            found.append((part.name, part.company(row)))
    return tuple(found)


def _outputs(
    rows: Sequence[SlotRow], structure: Hashable, company: Company, buckets: Buckets, most: int
) -> Sequence[torch.Tensor]:
    """The outputs of rows of one structure; of deterministic ones in buckets."""
    plan, first = rows[0][0].plan, rows[0][1]
    sizes = [size for size in plan.row_buckets if size <= most]
    if not plan.bucket:
        return in_sizes(_evaluate, rows, sizes)
    with eagerly():
        if any(each is first.sample for _, each in company):  # of plugins that nothing is known of
            return _evaluate(filled(rows, max(len(rows), plan.bucket)))[: len(rows)]
        return buckets.run((*plan.batch_key, structure, company), _evaluate, rows, plan.bucket, sizes)


def _evaluate(rows: Sequence[SlotRow]) -> list[torch.Tensor]:
    announce((slot for slot, _ in rows), turn=False)
    evaluation = gather(rows)
    samples = list(dict.fromkeys(row.sample for _, row in rows))
    for conditioner in {c.name: c for s in samples for c in s.conditioners}.values():
        calls.condition(conditioner, evaluation)
    adapters = list({a.name: a for s in samples for a in s.adapters}.values())
    with calls.adapted(adapters, samples[0].model, evaluation):
        outputs = calls.predict(samples[0].model, evaluation)
    return list(outputs.split(1))


def gather(slot_rows: Sequence[SlotRow]) -> Evaluation:
    """The evaluation of these rows, each at its own timestep. Fills only the first slot's batch cache."""
    rows = [row for _, row in slot_rows]
    slots = {slot: number for number, slot in enumerate(dict.fromkeys(slot for slot, _ in slot_rows))}
    samples = [slot.sample for slot in slots if slot.sample is not None]
    cache = slot_rows[0][0].batch_cache
    numbers = [slots[slot] for slot, _ in slot_rows]
    times = [float(sample.timestep) for sample in samples]
    scales = [1.0 if slot.step is None else slot.step.scale for slot in slots]
    copied = to_device(torch.tensor([*(times[number] for number in numbers), *scales]), samples[0].latents.device)
    timesteps, factors = copied.split([len(rows), len(slots)])
    scaled = _scaled(list(slots), samples, None if all(scale == 1.0 for scale in scales) else factors)
    latents = torch.cat([scaled[number] for number in numbers])
    extra = [row.sample.extra_channels for row in rows if row.sample.extra_channels is not None]
    return Evaluation(
        rows,
        latents,
        timesteps,
        prompts=own_prompts(rows, cache),
        extra_channels=cache.get_or_make("extra channels", torch.cat, extra) if extra else None,
        batch_cache=cache,
    )


def _scaled(slots: Sequence[Slot], samples: Sequence[Sample], factors: torch.Tensor | None) -> Sequence[torch.Tensor]:
    """Each sample's latents, (1, channels, h, w), scaled as the denoiser's input. `factors`: one each; None: all 1."""
    latents = [
        sample.latents if slot.step is not None else sample.scheduler.scale_model_input(sample.latents, sample.timestep)
        for slot, sample in zip(slots, samples, strict=True)
    ]
    if factors is None:
        return latents
    stacked = torch.cat(latents)
    return list((stacked * factors.view(-1, 1, 1, 1)).to(stacked.dtype).split(1))


def _sample_outputs(outcomes: Sequence[Outcome[torch.Tensor]]) -> Outcome[list[torch.Tensor]]:
    """The outputs of one sample's rows; an error if any of them failed."""
    outputs = []
    for outcome in outcomes:
        if isinstance(outcome, DarkroomError):
            return outcome
        outputs.append(outcome)
    return outputs
