"""The engine's loop: step-level batching of all active images, on one thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import TypeVar

import torch

from darkroom_plugins.errors import DarkroomError
from darkroom_plugins.manager import Plugins
from darkroom_plugins.sample import Sample
from darkroom_server.device.transfer import LaunchLimiter
from darkroom_server.engine import decode, denoise, prepare
from darkroom_server.engine import step as stepping
from darkroom_server.engine.batcher import Batcher, Lane
from darkroom_server.engine.offload_turns import swap_is_due
from darkroom_server.engine.previews import PreviewDecoders, wants_preview
from darkroom_server.engine.prompt_cache import PromptCache
from darkroom_server.engine.queue_positions import QueuePositions
from darkroom_server.engine.recovery import Outcome, Recovery, work
from darkroom_server.engine.slot import Slot
from darkroom_server.errors import Cancelled, DeviceLost, to_domain_error
from darkroom_server.jobs.events import Ended, Event, ImageDecoded, PreviewMade, Started, StepDone
from darkroom_server.jobs.job import Job
from darkroom_server.schedulers.scheduler import noise_level

log = logging.getLogger(__name__)

TILED = "memory was short: the picture was decoded in tiles, and differs slightly"

T = TypeVar("T")


class Engine:
    """Steps the samples of all jobs, and posts events to the jobs' mailboxes on the event loop.

    `start`, `call`, `submit`, `cancel`, `forget_limits`, `lose` and `stop` are for the event loop; all else runs on the
    engine's thread, the only one that runs torch while the server serves.
    """

    def __init__(
        self,
        max_batch_rows: int,
        plugins: Plugins,
        decoders: PreviewDecoders,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._max_batch_rows = max_batch_rows
        self._plugins = plugins
        self._decoders = decoders
        self._on_lost: Callable[[], None] = lambda: None
        self._relieve: Callable[[], bool] = lambda: False
        self.recovery = Recovery(self._make_room)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._outbox: list[tuple[Job, Event]] = []
        self.prompts = PromptCache()
        self._batcher = Batcher()
        self._positions = QueuePositions(self._batcher, self._row_limit)
        self._launches = LaunchLimiter()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.ticks = 0

    @property
    def idle(self) -> bool:
        """Whether no job has a slot. From another thread the answer may be out of date."""
        return not self._batcher

    @property
    def pending(self) -> int:
        """How many jobs and calls wait for the next tick."""
        return self._inbox.qsize()

    @contextlib.asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """A context in which nothing is stepped: the jobs that come in meanwhile begin together."""
        gate = threading.Event()
        holding = asyncio.ensure_future(self.call(gate.wait))
        try:
            yield
        finally:
            gate.set()
            await holding

    def attach(self, on_lost: Callable[[], None], relieve: Callable[[], bool]) -> None:
        """Set callbacks for the engine's thread: `on_lost` runs when the device is lost; `relieve` when a single item
        does not fit into its memory: it evicts idle models, and returns whether there were any."""
        self._on_lost, self._relieve = on_lost, relieve

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def stop(self) -> None:
        """Cancel all jobs, and join the thread."""
        self._inbox.put(self._stop)
        await asyncio.to_thread(self._thread.join)

    async def call(self, function: Callable[[], T]) -> T:
        """The result of a function that uses torch, run on the engine's thread between two ticks."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._inbox.put(run)
        return await asyncio.wrap_future(future)

    def submit(self, job: Job) -> None:
        """Enqueue a job. Its events go to its mailbox, the last one is `Ended`."""
        self._inbox.put(lambda: self._admit(job))

    def cancel(self, job: Job, then: Callable[[], None]) -> None:
        """Cancel a job before its next step, unless it has ended. `then` is called on the event loop when the engine no
        longer uses the job's model."""

        def run() -> None:
            self._end(job, Cancelled("the job was cancelled"))
            self._loop.call_soon_threadsafe(then)

        self._inbox.put(run)

    def forget_limits(self) -> None:
        """Reset the learnt row limits, after memory was freed."""
        self._inbox.put(self.recovery.limits.forget)

    def lose(self, error: DeviceLost) -> None:
        """End all jobs: another thread found the device lost."""
        self._inbox.put(lambda: self._lose(error))

    @torch.inference_mode()
    def _run(self) -> None:
        while not self._stopping:
            try:
                self._drain_inbox()
                if self._batcher:
                    self._take_turn()
            except DeviceLost as error:
                self._lose(error)
            except BaseException as error:  # without this thread all streams would hang
                log.critical("the engine failed", exc_info=error)
                self._lose(DeviceLost("the engine failed; the server will be restarted"))
            self._flush_events()

    def _drain_inbox(self) -> None:
        """Run the calls that arrived since the last tick; block for one while no job is active."""
        if not self._batcher:
            self._inbox.get()()
        while not self._inbox.empty():
            self._inbox.get()()

    def _lose(self, error: DeviceLost) -> None:
        self._end_all(error)
        self._on_lost()

    def _stop(self) -> None:
        self._stopping = True
        self._end_all(Cancelled("the server stopped"))

    def _admit(self, job: Job) -> None:
        if job.progress.ended:
            return
        self._batcher.add(job)
        self._positions.stale = True

    def _row_limit(self, lane: Lane) -> int:
        return self.recovery.limits.of(work("denoise", lane.slots[0].job.request), self._max_batch_rows)

    def _make_room(self) -> bool:
        self.prompts.clear()
        self._plugins.release()
        return self._relieve()

    def _take_turn(self) -> None:
        lane = self._batcher.next_lane()
        slots = lane.select_batch(self._row_limit(lane))
        try:
            self._tick(slots)
            self._launches.keep(slots[0].job.plan.model.family.device)
        except DeviceLost:
            raise
        except Exception as error:  # a bug of the engine: fail the batch's jobs only
            for slot in slots:
                self._fail(slot.job, error)

    def _tick(self, slots: Sequence[Slot]) -> None:
        """One iteration of the loop: prepare new slots, evaluate the denoiser, step, preview, decode."""
        self.ticks += 1
        if not slots[0].job.plan.model.placement.swapping:
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
        outcomes = denoise.predict(begun, self.recovery)
        self._preview(self._advance(begun, outcomes))

    def _begin(self, slots: Sequence[Slot]) -> None:
        """Prepare new slots: first the prompts of all, then their latents, so that offload swaps each network in only
        once."""
        new = [slot for slot in slots if slot.sample is None]
        for slot in new:
            self._begin_one(slot, self._make)
        self._fetch_prompts([slot for slot in new if slot.sample is not None])
        for part in (self._encode, self._prepare):
            for slot in new:
                self._begin_one(slot, part)

    def _begin_one(self, slot: Slot, part: Callable[[Slot], None]) -> None:
        job, arrived = slot.job, time.monotonic()
        if job.progress.ended:
            return
        if job.progress.started is None:
            job.progress.started, job.progress.swaps = arrived, job.plan.model.placement.swaps
            self._emit(job, Started())
            self._positions.record_start(arrived)
            self._positions.stale = True
        try:
            part(slot)
        except BaseException as error:
            self._fail(job, error)
            return
        slot.began = time.monotonic()
        job.progress.encode_prompt_seconds += slot.began - arrived

    def _make(self, slot: Slot) -> None:
        slot.sample = prepare.make_sample(slot)

    def _fetch_prompts(self, slots: Sequence[Slot]) -> None:
        began = time.monotonic()
        self.prompts.fetch([(slot.sample, slot.job.plan.prompts) for slot in slots if slot.sample], self.recovery)
        seconds = time.monotonic() - began
        for job in {slot.job for slot in slots}:
            job.progress.encode_prompt_seconds += seconds

    def _encode(self, slot: Slot) -> None:
        assert slot.sample is not None
        rows = partial(self.prompts.rows, slot.sample, slot.job.plan.prompts)
        slot.sample.rows = self.recovery.once(rows)
        _warn(slot.job, *(warning for row in slot.sample.rows for warning in row.warnings))

    def _prepare(self, slot: Slot) -> None:
        assert slot.sample is not None
        slot.sample = self.recovery.once(partial(prepare.begin, slot.sample))

    def _advance(
        self, begun: Sequence[tuple[Slot, Sample]], outcomes: Sequence[Outcome[list[torch.Tensor]]]
    ) -> list[tuple[Slot, torch.Tensor]]:
        """Step the samples, and emit `StepDone`. Returns the estimates of clean latents for due previews."""
        for (slot, _), outcome in zip(begun, outcomes, strict=True):
            if isinstance(outcome, DarkroomError):
                self._fail(slot.job, outcome)
        active = [
            (slot, slot.job.plan.steps.ends.get(sample.evaluation), sample, outcome)
            for (slot, sample), outcome in zip(begun, outcomes, strict=True)
            if not isinstance(outcome, DarkroomError)
            and not slot.job.progress.ended  # by the failure of another image of its job
        ]
        rows, now = sum(slot.rows for slot, _ in begun), time.monotonic()
        inputs = [
            stepping.StepInput(
                sample, slot.job.plan.entry, slot.step, outputs, step is not None and wants_preview(slot, step, now)
            )
            for slot, step, sample, outputs in active
        ]
        estimates = []
        for (slot, step, sample, _), advanced in zip(active, stepping.advance(inputs, self.recovery), strict=True):
            if isinstance(advanced, DarkroomError):
                self._fail(slot.job, advanced)
                continue
            if step is not None:
                self._emit(slot.job, _step_done(slot, sample, step, rows))
            if advanced is not None:
                estimates.append((slot, advanced))
        return estimates

    def _preview(self, estimates: Sequence[tuple[Slot, torch.Tensor]]) -> None:
        """Make the due previews. A failed one becomes a warning, not a failed job."""
        for mode in dict.fromkeys(slot.job.request.preview.mode for slot, _ in estimates):
            wanted = [
                each
                for each in estimates
                if each[0].job.request.preview.mode == mode and not each[0].job.progress.ended
            ]
            for (slot, _), outcome in zip(wanted, self._decoders.decode(wanted, self.recovery), strict=True):
                slot.previewed = time.monotonic()
                if isinstance(outcome, DarkroomError):
                    _warn(slot.job, f"a preview is missing: {outcome}")
                    continue
                assert slot.sample is not None
                step = slot.job.plan.steps.ends[slot.sample.evaluation - 1]
                self._emit(slot.job, PreviewMade(slot.index, step, outcome, mode))

    def _finish(self, done: Sequence[tuple[Slot, Sample]]) -> None:
        done = [(slot, sample) for slot, sample in done if not slot.job.progress.ended]
        began = time.monotonic()
        side_stream = not any(slot.job.plan.model.placement.swapping for slot, _ in done)
        outcomes = decode.decode([sample for _, sample in done], self.recovery, side_stream)
        seconds = time.monotonic() - began
        for job in {slot.job for slot, _ in done}:
            job.progress.decode_seconds += seconds
        for (slot, _), outcome in zip(done, outcomes, strict=True):
            self._complete(slot, outcome)

    def _complete(self, slot: Slot, outcome: Outcome[decode.Decoded]) -> None:
        job = slot.job
        if isinstance(outcome, DarkroomError):
            self._end(job, outcome)
            return
        if outcome.tiled:
            _warn(job, TILED)
        self._emit(job, ImageDecoded(slot.index, outcome.picture, outcome.findings))
        self._batcher.drop([slot])
        job.progress.slots_left -= 1
        if job.progress.slots_left == 0:
            self._end(job, None)

    def _end(self, job: Job, error: Exception | None) -> None:
        """End a job: free its slots, emit `Ended`, log. All jobs end here."""
        if job.progress.ended:
            return
        job.progress.ended = True
        self._batcher.drop_job(job)
        self._positions.stale = True
        now = time.monotonic()
        self._emit(job, Ended(error, job.timings(now), tuple(job.progress.warnings)))
        seconds = round(now - job.arrived, 3)
        swaps = job.plan.model.placement.swaps - job.progress.swaps if job.progress.started is not None else 0
        moved = f", with {swaps} swaps" if swaps else ""
        log.info("job %s ended after %s s%s: %s", job.request_id, seconds, moved, error or "done")

    def _fail(self, job: Job, error: BaseException) -> None:
        """End a job with an error of a plugin or the model.

        :raises DeviceLost: which ends all jobs
        """
        failure = to_domain_error(error)
        if isinstance(failure, DeviceLost):
            raise failure
        self._end(job, failure)

    def _end_all(self, error: Exception) -> None:
        for job in self._batcher.jobs():
            self._end(job, error)

    def _emit(self, job: Job, event: Event) -> None:
        if not job.progress.ended or isinstance(event, Ended):
            self._outbox.append((job, event))

    def _flush_events(self) -> None:
        """Hand the tick's events to the event loop in one call: a wake-up costs more than an event."""
        for job, queued in self._positions.updates(time.monotonic()):
            self._emit(job, queued)
        if self._outbox:
            self._loop.call_soon_threadsafe(_put_in_mailboxes, self._outbox)
            self._outbox = []


def _begun(slots: Sequence[Slot], done: bool) -> list[tuple[Slot, Sample]]:
    """The slots of active jobs with their samples: the finished ones with `done`, else the unfinished."""
    begun = [(slot, slot.sample) for slot in slots if slot.sample is not None and not slot.job.progress.ended]
    return [(slot, sample) for slot, sample in begun if sample.done is done]


def _put_in_mailboxes(outbox: Sequence[tuple[Job, Event]]) -> None:
    """For the event loop's thread."""
    for job, event in outbox:
        if isinstance(event, Started):
            job.queued = False
        else:
            job.mailbox.put(event)


def _warn(job: Job, *warnings: str) -> None:
    job.progress.warnings += (each for each in dict.fromkeys(warnings) if each not in job.progress.warnings)


def _step_done(slot: Slot, sample: Sample, step: int, rows: int) -> StepDone:
    steps = slot.job.plan.steps
    elapsed, began = time.monotonic() - slot.began, steps.begins[step]
    return StepDone(
        image_index=slot.index,
        step=step,
        step_count=steps.count,
        timestep=float(sample.timesteps[began]),
        sigma=noise_level(sample.scheduler, began),
        elapsed=elapsed,
        eta=elapsed / step * (steps.count - step),
        batch_rows=rows,
    )
