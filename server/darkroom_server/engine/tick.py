"""One iteration of the engine's loop over a batch: prepares new slots, evaluates the denoiser, steps, previews,
decodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from darkroom_plugins.errors import DarkroomError
from darkroom_plugins.sample import Sample
from darkroom_server.device.transfer import DecodeLimiter
from darkroom_server.engine import denoise
from darkroom_server.engine import step as stepping
from darkroom_server.engine.buckets import Buckets
from darkroom_server.engine.decode import Decoded, Decoder
from darkroom_server.engine.offload_turns import swap_is_due
from darkroom_server.engine.prepare import Starter, make_sample
from darkroom_server.engine.previews import PreviewDecoders, wants_preview
from darkroom_server.engine.recovery import Outcome, Recovery
from darkroom_server.engine.slot import Slot
from darkroom_server.jobs.events import ImageDecoded, PreviewMade, Started, StepDone
from darkroom_server.jobs.job import Job
from darkroom_server.schedulers.scheduler import noise_level

if TYPE_CHECKING:
    from darkroom_server.device.thread_tuner import ThreadTuner
    from darkroom_server.engine.endings import Endings
    from darkroom_server.engine.long_work import LongWork
    from darkroom_server.engine.meter import Meter
    from darkroom_server.engine.outbox import Outbox
    from darkroom_server.engine.prompt_cache import PromptCache
    from darkroom_server.engine.queue_positions import QueuePositions
    from darkroom_server.jobs.numbers import EngineNumbers
    from darkroom_server.jobs.plan import Plan

TILED = {
    "encode": "the pictures are large for the model or its memory: they were encoded in tiles, approximately",
    "decode": "the picture is large for the model or its memory: it was decoded in tiles, approximately",
}


class Tick:
    """Steps the samples of one batch at a time, and emits the events of their jobs. All is the engine's."""

    def __init__(
        self,
        seats: int,
        recovery: Recovery,
        long: LongWork,
        threads: ThreadTuner,
        prompts: PromptCache,
        decoders: PreviewDecoders,
        numbers: EngineNumbers,
        meter: Meter,
        positions: QueuePositions,
        outbox: Outbox,
        endings: Endings,
        go_on: Callable[[Slot, Plan, torch.Tensor], None],
    ) -> None:
        """`seats`: pictures that may be decoded at once. `go_on` lets a slot go on by the plan of its next stage, with
        the latents of the one before."""
        self._recovery, self._long, self._threads = recovery, long, threads
        self._prompts, self._decoders = prompts, decoders
        self._numbers, self._meter, self._positions = numbers, meter, positions
        self._outbox, self._endings, self._go_on = outbox, endings, go_on
        self._starter, self._decoder = Starter(recovery, long), Decoder(recovery, long)
        self._buckets = Buckets()
        self._decodes = DecodeLimiter(seats)

    def run(self, slots: Sequence[Slot]) -> None:
        """Prepare new slots, evaluate the denoiser, step, preview, decode."""
        self._threads.settle(*kind_of(slots))
        if not slots[0].plan.model.placement.swapping:
            self._begin(slots)
            self._step(_begun(slots, done=False))
            self._finish(_begun(slots, done=True))
            return
        due = swap_is_due(slots)
        for slot in slots:
            slot.evaluations, slot.skip_network_swap = (0, False) if due else (slot.evaluations + 1, True)
        self._step(_begun(slots, done=False))
        if due:
            self._begin(slots)
            self._finish(_begun(slots, done=True))

    def _step(self, begun: Sequence[tuple[Slot, Sample]]) -> None:
        if not begun:  # a low strength can skip all steps
            return
        slots, began = [slot for slot, _ in begun], time.monotonic()
        for slot in slots:
            slot.job.progress.denoised = None  # what other images of it are there
        with (
            self._numbers.part("evaluation"),
            self._threads.evaluation(*kind_of(slots)),
            self._long.divided("evaluation", slots),
        ):
            outcomes = denoise.predict(begun, self._recovery, self._buckets)
        with self._numbers.part("step"):
            estimates = self._advance(begun, outcomes)
        self._meter.stepped(slots, time.monotonic() - began)
        with self._numbers.part("preview"):
            self._preview(estimates)

    def _begin(self, slots: Sequence[Slot]) -> None:
        """Prepare new slots: first the prompts of all, then their latents, so that offload swaps each network in only
        once."""
        new = [slot for slot in slots if slot.sample is None]
        with self._meter.beside("begin", new):
            for slot in new:
                self._begin_one(slot, self._make)
            self._fetch_prompts([slot for slot in new if slot.sample is not None])
            for part in (self._encode, self._prepare):
                for slot in new:
                    self._begin_one(slot, part)
        now = time.monotonic()
        for slot in new:
            slot.job.progress.encoded = slot.job.progress.encoded or now

    def _begin_one(self, slot: Slot, part: Callable[[Slot], None]) -> None:
        job, arrived = slot.job, time.monotonic()
        if job.progress.ended:
            return
        if job.progress.started is None:
            job.progress.started, job.progress.swaps = arrived, job.plan.model.placement.swaps
            self._numbers.waits.add(arrived - job.arrived)
            self._outbox.emit(job, Started())
            self._positions.stale = True
        try:
            part(slot)
        except BaseException as error:
            self._endings.fail(job, error)
            return
        if slot.plan is job.plan:  # not a later stage
            slot.began = time.monotonic()

    def _make(self, slot: Slot) -> None:
        slot.sample = make_sample(slot)

    def _fetch_prompts(self, slots: Sequence[Slot]) -> None:
        self._prompts.fetch([(slot.sample, slot.plan.prompts) for slot in slots if slot.sample], self._recovery)

    def _encode(self, slot: Slot) -> None:
        assert slot.sample is not None
        rows = partial(self._prompts.rows, slot.sample, slot.plan.prompts)
        slot.sample.rows = self._recovery.once(rows)
        _warn(slot.job, *(warning for row in slot.sample.rows for warning in row.warnings))

    def _prepare(self, slot: Slot) -> None:
        assert slot.sample is not None
        slot.sample, tiled = self._starter.begin(slot, slot.sample)
        if tiled:
            _warn(slot.job, TILED["encode"])
        _warn(slot.job, *slot.sample.warnings)

    def _advance(
        self, begun: Sequence[tuple[Slot, Sample]], outcomes: Sequence[Outcome[list[torch.Tensor]]]
    ) -> list[tuple[Slot, torch.Tensor]]:
        """Step the samples, and emit `StepDone`. Returns the estimates of clean latents for due previews."""
        for (slot, _), outcome in zip(begun, outcomes, strict=True):
            if isinstance(outcome, DarkroomError):
                self._endings.fail(slot.job, outcome)
        active = [
            (slot, slot.plan.steps.ends.get(sample.evaluation), sample, outcome)
            for (slot, sample), outcome in zip(begun, outcomes, strict=True)
            if not isinstance(outcome, DarkroomError)
            and not slot.job.progress.ended  # by the failure of another image of its job
        ]
        rows, now = sum(slot.rows for slot, _ in begun), time.monotonic()
        inputs = [
            stepping.StepInput(
                sample, slot.plan.entry, slot.step, outputs, step is not None and wants_preview(slot, step, now)
            )
            for slot, step, sample, outputs in active
        ]
        estimates = []
        for (slot, step, sample, _), advanced in zip(active, stepping.advance(inputs, self._recovery), strict=True):
            if isinstance(advanced, DarkroomError):
                self._endings.fail(slot.job, advanced)
                continue
            if step is not None:
                self._outbox.emit(slot.job, _step_done(slot, sample, step, rows))
            if advanced is not None:
                estimates.append((slot, advanced))
        return estimates

    def _preview(self, estimates: Sequence[tuple[Slot, torch.Tensor]]) -> None:
        """Make the due previews. A failed one becomes a warning, not a failed job."""
        for mode in dict.fromkeys(slot.plan.request.preview.mode for slot, _ in estimates):
            wanted = [
                each
                for each in estimates
                if each[0].plan.request.preview.mode == mode and not each[0].job.progress.ended
            ]
            outcomes = self._decoders.decode(wanted, self._recovery, self._long)
            for (slot, _), outcome in zip(wanted, outcomes, strict=True):
                slot.previewed = time.monotonic()
                if isinstance(outcome, DarkroomError):
                    _warn(slot.job, f"a preview is missing: {outcome}")
                    continue
                assert slot.sample is not None
                step = slot.plan.steps.ends[slot.sample.evaluation - 1]
                self._outbox.emit(slot.job, PreviewMade(slot.index, slot.steps_before + step, outcome, mode))
                self._numbers.previews += 1

    def _finish(self, done: Sequence[tuple[Slot, Sample]]) -> None:
        """Let the samples that are done go on to their next stage; decode those that have none."""
        for slot, sample in done:
            if slot.plan.following is not None:
                self._go_on(slot, slot.plan.following, sample.latents)
        done = [(slot, sample) for slot, sample in done if slot.sample is sample]
        now = time.monotonic()
        for slot, _ in done:
            slot.job.progress.denoised = now
        side_stream = not any(slot.plan.model.placement.swapping for slot, _ in done)
        with self._meter.beside("decode", [slot for slot, _ in done]):
            outcomes = self._decoder.decode(done, side_stream)
            self._decodes.add(outcome.picture for outcome in outcomes if isinstance(outcome, Decoded))
        for (slot, _), outcome in zip(done, outcomes, strict=True):
            self._complete(slot, outcome)

    def _complete(self, slot: Slot, outcome: Outcome[Decoded]) -> None:
        job = slot.job
        if isinstance(outcome, DarkroomError):
            self._endings.end(job, outcome)
            return
        if outcome.tiled:
            _warn(job, TILED["decode"])
        self._outbox.emit(job, ImageDecoded(slot.index, outcome.picture, outcome.findings))
        self._endings.complete(slot)


def _begun(slots: Sequence[Slot], done: bool) -> list[tuple[Slot, Sample]]:
    """The slots of active jobs with their samples: the finished ones with `done`, else the unfinished."""
    begun = [(slot, slot.sample) for slot in slots if slot.sample is not None and not slot.job.progress.ended]
    return [(slot, sample) for slot, sample in begun if sample.done is done]


def kind_of(slots: Sequence[Slot]) -> tuple[Hashable, bool]:
    """What evaluations of these slots are to the tuner of threads, and whether their number is fixed: for equal bytes,
    and where another device computes."""
    request, rows = slots[0].plan.request, sum(slot.rows for slot in slots)
    fixed = request.deterministic or slots[0].plan.model.family.device.type != "cpu"
    return (request.model, (rows * request.width * request.height).bit_length()), fixed


def _warn(job: Job, *warnings: str) -> None:
    job.progress.warnings += (each for each in dict.fromkeys(warnings) if each not in job.progress.warnings)


def _step_done(slot: Slot, sample: Sample, step: int, rows: int) -> StepDone:
    elapsed, began = time.monotonic() - slot.began, slot.plan.steps.begins[step]
    return StepDone(
        image_index=slot.index,
        step=slot.steps_before + step,
        step_count=slot.job.plan.step_count,
        timestep=float(sample.timesteps[began]),
        sigma=noise_level(sample.scheduler, began),
        elapsed=elapsed,
        eta=slot.eta(step, elapsed),
        batch_rows=rows,
    )
