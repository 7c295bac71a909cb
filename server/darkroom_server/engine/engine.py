"""The engine's loop: step-level batching of all active images, on one thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from functools import partial
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache

from darkroom_plugins.errors import DarkroomError
from darkroom_plugins.manager import Plugins
from darkroom_plugins.sample import Sample
from darkroom_server.device.thread_tuner import ThreadTuner
from darkroom_server.device.transfer import DecodeLimiter, LaunchLimiter
from darkroom_server.engine import denoise
from darkroom_server.engine import step as stepping
from darkroom_server.engine.batcher import Batcher, Lane
from darkroom_server.engine.buckets import Buckets
from darkroom_server.engine.decode import Decoded, Decoder
from darkroom_server.engine.endings import log_end, reason_of
from darkroom_server.engine.long_work import LongWork, Work
from darkroom_server.engine.meter import Meter
from darkroom_server.engine.offload_turns import swap_is_due
from darkroom_server.engine.outbox import Outbox
from darkroom_server.engine.prepare import Starter, make_sample
from darkroom_server.engine.previews import PreviewDecoders, wants_preview
from darkroom_server.engine.prompt_cache import PromptCache
from darkroom_server.engine.queue_positions import Estimate, QueuePositions
from darkroom_server.engine.recovery import Outcome, Recovery, work
from darkroom_server.engine.slot import Slot
from darkroom_server.errors import Cancelled, DeviceLost, to_domain_error
from darkroom_server.jobs.events import Ended, ImageDecoded, PreviewMade, Started, StepDone
from darkroom_server.jobs.job import Job
from darkroom_server.jobs.numbers import EngineNumbers
from darkroom_server.schedulers.scheduler import noise_level

log = logging.getLogger(__name__)

TILED = {
    "encode": "the input pictures are large for the model or its memory: they were encoded in tiles, approximately",
    "decode": "the picture is large for the model or its memory: it was decoded in tiles, approximately",
}

FAILED = "the engine failed; the server will be restarted"

T = TypeVar("T")


class Engine:
    """Steps the samples of all jobs, and posts events to the jobs' mailboxes on the event loop.

    `start`, `call`, `submit`, `estimate`, `cancel`, `memory_freed`, `lose` and `stop` are for the event loop; all else
    runs on the engine's thread, the only one that runs torch while the server serves.
    """

    def __init__(
        self,
        max_batch_rows: int,
        plugins: Plugins,
        decoders: PreviewDecoders,
        threads: ThreadTuner,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._max_batch_rows = max_batch_rows
        self._plugins = plugins
        self._decoders = decoders
        self._threads = threads
        self._on_lost: Callable[[], None] = lambda: None
        self._relieve: Callable[[], bool] = lambda: False
        self.recovery = Recovery(self._make_room)
        self._long = LongWork(self._attend)
        self._starter, self._decoder = Starter(self.recovery, self._long), Decoder(self.recovery, self._long)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.prompts = PromptCache()
        self.numbers = EngineNumbers()
        self._batcher = Batcher()
        self._meter = Meter(self.numbers, self._batcher.charge)
        self._positions = QueuePositions(self._batcher, self._row_limit, self._meter.speeds)
        self.outbox = Outbox(self._loop, self._positions)
        self._buckets = Buckets()
        self._launches = LaunchLimiter()
        self._decodes = DecodeLimiter(max_batch_rows // 2)  # as many as there are seats, with guidance
        self._stopping = False
        self._returns_memory = False  # of models that have left, when it is idle
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._attended: float | None = None  # time.monotonic at the last turn, call or attendance; None: it waits
        self.ticks = 0
        self.logs_prompts = False

    @property
    def thread(self) -> int | None:
        """The identifier of its thread."""
        return self._thread.ident

    @property
    def threads(self) -> int:
        """How many threads compute for deterministic jobs on a CPU: all."""
        return self._threads.most

    @property
    def working(self) -> Work | None:
        """The long work that runs now, if any. May be read from another thread."""
        return self._long.running

    def stalled_for(self, now: float) -> float:
        """Seconds since the engine last attended to its jobs, 0 while it has none. May be called on another thread."""
        attended = self._attended
        return max(0.0, now - attended) if attended is not None else 0.0

    @property
    def idle(self) -> bool:
        """Whether no job has a slot. From another thread the answer may be out of date."""
        return not self._batcher

    def samples(self) -> tuple[int, int]:
        """How many images the engine has not begun, and has begun. May be called on another thread, and is then out of
        date."""
        slots = [slot for lane in self._batcher.lanes() for slot in lane.slots]
        waiting = sum(slot.sample is None for slot in slots)
        return waiting, len(slots) - waiting

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
            if not future.set_running_or_notify_cancel():  # nobody waits for it any more
                return
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._inbox.put(run)
        return await asyncio.wrap_future(future)

    def submit(self, job: Job, then: Callable[[], None]) -> None:
        """Enqueue a job. Its events go to its mailbox, the last one is `Ended`. `then` is called on the event loop when
        the job has ended and the engine no longer uses its model."""
        self._inbox.put(lambda: self._admit(job, then))

    def estimate(self, job: Job) -> Estimate | None:
        """When a planned job would begin and be done that came now; None if nothing like it has been measured."""
        return self._positions.estimate(job, self._row_limit_of(job), time.monotonic())

    def seconds_alone(self, job: Job) -> float | None:
        """What a planned job would take without others; None if nothing like it has been measured."""
        return self._positions.alone(job, self._row_limit_of(job))

    def cancel(self, job: Job) -> None:
        """Cancel a job before its next step, unless it has ended."""
        self._inbox.put(lambda: self._end(job, Cancelled("the job was cancelled")))

    def memory_freed(self) -> None:
        """Reset the learnt row limits, and when nothing is to be done return memory to the device."""
        self._inbox.put(self._on_freed)

    def forget_prompts(self) -> None:
        """Drop the prompts' embeddings, of which some may be due to files that have changed."""
        self._inbox.put(self.prompts.clear)

    def lose(self, error: DeviceLost) -> None:
        """End all jobs: another thread found the device lost."""
        self._inbox.put(lambda: self._lose(error))

    @torch.inference_mode()
    def _run(self) -> None:
        while not self._stopping:
            try:
                self._wait()
                self._drain_inbox()
                if (lane := self._batcher.next_lane()) is not None:
                    self._take_turn(lane)
                self.outbox.post()
            except DeviceLost as error:
                self._lose(error)
            except BaseException as error:  # without this thread all streams would hang
                log.critical("the engine failed", exc_info=error)
                self._lose(DeviceLost(FAILED))
        self.outbox.post()

    def _on_freed(self) -> None:
        self.recovery.limits.forget()
        self._returns_memory = True

    def _wait(self) -> None:
        """Block while there is nothing to do."""
        if self._returns_memory and not self._batcher and not self.pending:  # it waits for all that the device runs
            self._returns_memory = False
            clear_device_cache()
        self._attended = None
        call = self._inbox.get() if not self._batcher else None
        self._attended = time.monotonic()
        if call is not None:
            call()

    def _drain_inbox(self) -> None:
        """Run the calls that arrived since the last tick."""
        while not self._inbox.empty():
            self._inbox.get()()
            self._attended = time.monotonic()

    def _attend(self, running: Work, seconds: float) -> None:
        """Between two layers of long work, `seconds` after the last time: take new jobs in, end cancelled ones, and
        give other lanes turns for as long as the piece took, where they do not disturb it.

        :raises Cancelled: all jobs of the work have ended
        """
        try:
            self._drain_inbox()
            running.check()
            if running.shared:
                with running.interrupted():
                    self._give_turns(running, time.monotonic() + seconds)
                self._threads.settle(*_kind(running.slots))
            self.outbox.post(within_turn=True)
            self._attended = time.monotonic()
            running.check()
        except (Cancelled, DeviceLost):
            raise
        except Exception as error:  # not the fault of the work's network, through which it is raised
            log.critical("the engine failed", exc_info=error)
            raise DeviceLost(FAILED) from error

    def _give_turns(self, running: Work, until: float) -> None:
        """Give other lanes turns, at least one, until this time."""
        while (lane := self._batcher.next_lane(running.may_give_way)) is not None:
            self._take_turn(lane)
            self._drain_inbox()
            if time.monotonic() >= until:
                break

    def _lose(self, error: DeviceLost) -> None:
        self._end_all(error)
        self._on_lost()
        self.outbox.post()

    def _stop(self) -> None:
        self._stopping = True
        self._end_all(Cancelled("the server stopped"))

    def _admit(self, job: Job, then: Callable[[], None]) -> None:
        if job.progress.ended:
            self.outbox.release(then)
            return
        job.progress.then = then
        lane = self._batcher.add(job)
        lane.seconds = partial(self._meter.speeds.evaluation, lane.first.job.plan)
        self._positions.stale = True

    def _row_limit(self, lane: Lane) -> int:
        return self._row_limit_of(lane.first.job)

    def _row_limit_of(self, job: Job) -> int:
        return self.recovery.limits.of(work("denoise", job.request), self._max_batch_rows)

    def _make_room(self) -> bool:
        self.prompts.clear()
        self._plugins.release()
        return self._relieve()

    def _take_turn(self, lane: Lane) -> None:
        slots = lane.select_batch(self._row_limit(lane))
        lane.begin_turn(slots, time.monotonic())
        lane.busy = True
        try:
            with self._meter.turn(slots):
                self._tick(slots)
                self._launches.keep(slots[0].job.plan.model.family.device)
        except DeviceLost:
            raise
        except Exception as error:  # a bug of the engine: fail the batch's jobs only
            for slot in slots:
                self._fail(slot.job, error)
        finally:
            lane.busy = False
            self._attended = time.monotonic()

    def _tick(self, slots: Sequence[Slot]) -> None:
        """One iteration of the loop: prepare new slots, evaluate the denoiser, step, preview, decode."""
        self.ticks += 1
        self._threads.settle(*_kind(slots))
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
        slots, began = [slot for slot, _ in begun], time.monotonic()
        with (
            self.numbers.part("evaluation"),
            self._threads.evaluation(*_kind(slots)),
            self._long.divided("evaluation", slots),
        ):
            outcomes = denoise.predict(begun, self.recovery, self._buckets)
        with self.numbers.part("step"):
            estimates = self._advance(begun, outcomes)
        self._meter.stepped(slots, time.monotonic() - began)
        with self.numbers.part("preview"):
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

    def _begin_one(self, slot: Slot, part: Callable[[Slot], None]) -> None:
        job, arrived = slot.job, time.monotonic()
        if job.progress.ended:
            return
        if job.progress.started is None:
            job.progress.started, job.progress.swaps = arrived, job.plan.model.placement.swaps
            self.numbers.waits.add(arrived - job.arrived)
            self.outbox.emit(job, Started())
            self._positions.stale = True
        try:
            part(slot)
        except BaseException as error:
            self._fail(job, error)
            return
        slot.began = time.monotonic()
        job.progress.encode_prompt_seconds += slot.began - arrived

    def _make(self, slot: Slot) -> None:
        slot.sample = make_sample(slot)

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
        slot.sample, tiled = self._starter.begin(slot, slot.sample)
        if tiled and slot.job.request.image is not None:
            _warn(slot.job, TILED["encode"])
        _warn(slot.job, *slot.sample.warnings)

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
                self.outbox.emit(slot.job, _step_done(slot, sample, step, rows))
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
            outcomes = self._decoders.decode(wanted, self.recovery, self._long)
            for (slot, _), outcome in zip(wanted, outcomes, strict=True):
                slot.previewed = time.monotonic()
                if isinstance(outcome, DarkroomError):
                    _warn(slot.job, f"a preview is missing: {outcome}")
                    continue
                assert slot.sample is not None
                step = slot.job.plan.steps.ends[slot.sample.evaluation - 1]
                self.outbox.emit(slot.job, PreviewMade(slot.index, step, outcome, mode))
                self.numbers.previews += 1

    def _finish(self, done: Sequence[tuple[Slot, Sample]]) -> None:
        done = [(slot, sample) for slot, sample in done if not slot.job.progress.ended]
        began = time.monotonic()
        side_stream = not any(slot.job.plan.model.placement.swapping for slot, _ in done)
        with self._meter.beside("decode", [slot for slot, _ in done]):
            outcomes = self._decoder.decode(done, side_stream)
            self._decodes.add(outcome.picture for outcome in outcomes if isinstance(outcome, Decoded))
        seconds = time.monotonic() - began
        for job in {slot.job for slot, _ in done}:
            job.progress.decode_seconds += seconds
        for (slot, _), outcome in zip(done, outcomes, strict=True):
            self._complete(slot, outcome)

    def _complete(self, slot: Slot, outcome: Outcome[Decoded]) -> None:
        job = slot.job
        if isinstance(outcome, DarkroomError):
            self._end(job, outcome)
            return
        if outcome.tiled:
            _warn(job, TILED["decode"])
        self.outbox.emit(job, ImageDecoded(slot.index, outcome.picture, outcome.findings))
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
        self.numbers.ends[reason_of(error)] += 1
        self._positions.stale = True
        now = time.monotonic()
        self.outbox.emit(job, Ended(error, job.timings(now), tuple(job.progress.warnings)))
        if job.progress.then is not None:
            self.outbox.release(job.progress.then)
        log_end(job, error, now, with_prompt=self.logs_prompts)

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


def _begun(slots: Sequence[Slot], done: bool) -> list[tuple[Slot, Sample]]:
    """The slots of active jobs with their samples: the finished ones with `done`, else the unfinished."""
    begun = [(slot, slot.sample) for slot in slots if slot.sample is not None and not slot.job.progress.ended]
    return [(slot, sample) for slot, sample in begun if sample.done is done]


def _kind(slots: Sequence[Slot]) -> tuple[Hashable, bool]:
    """What evaluations of these slots are to the tuner of threads, and whether their number is fixed: for equal bytes,
    and where another device computes."""
    request, rows = slots[0].job.request, sum(slot.rows for slot in slots)
    fixed = request.deterministic or slots[0].job.plan.model.family.device.type != "cpu"
    return (request.model, (rows * request.width * request.height).bit_length()), fixed


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
