"""The loop that steps all images in the making, on a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch

from darkroom_plugins.errors import DarkroomError
from darkroom_plugins.manager import Plugins
from darkroom_plugins.sample import Sample
from darkroom_server.device.transfer import Pace
from darkroom_server.engine import decode, denoise, prepare
from darkroom_server.engine import step as stepping
from darkroom_server.engine.batcher import Batcher, Lane
from darkroom_server.engine.offload_turns import turns_now
from darkroom_server.engine.previews import PreviewDecoders, wants_preview
from darkroom_server.engine.prompt_cache import PromptCache
from darkroom_server.engine.queue_positions import WaitingRoom
from darkroom_server.engine.recovery import Outcome, Recovery, work
from darkroom_server.engine.seat import Seat
from darkroom_server.errors import Cancelled, DeviceLost, to_domain_error
from darkroom_server.jobs.events import Ended, Event, ImageDecoded, PreviewMade, StepDone
from darkroom_server.jobs.job import Job
from darkroom_server.jobs.mailbox import Mailbox
from darkroom_server.schedulers.scheduler import noise_level

log = logging.getLogger(__name__)

TILED = "memory was short: the picture was decoded in tiles, and differs slightly"

T = TypeVar("T")


class Engine:
    """Steps every job's samples, and puts what happens into the jobs' mailboxes on the event loop.

    `start`, `call`, `submit`, `cancel`, `forget_limits` and `stop` are for the event loop; all else runs on the
    engine's thread, the only one that runs torch while the server serves. There `on_lost` is called when the device is
    lost, and `relieve` when something does not fit into its memory even alone: it lets go of idle models, and says
    whether there were any.
    """

    def __init__(
        self,
        max_batch_rows: int,
        plugins: Plugins,
        decoders: PreviewDecoders,
        on_lost: Callable[[], None],
        relieve: Callable[[], bool] = lambda: False,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._max_batch_rows = max_batch_rows
        self._plugins = plugins
        self._decoders = decoders
        self._on_lost = on_lost
        self._relieve = relieve
        self.recovery = Recovery(self._make_room)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._outbox: list[tuple[Mailbox, Event]] = []
        self._prompts = PromptCache()
        self._batcher = Batcher()
        self._waiting = WaitingRoom(self._batcher, self._row_limit)
        self._pace = Pace()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.ticks = 0

    def start(self) -> None:
        """Begin to step."""
        self._thread.start()

    async def stop(self) -> None:
        """End the jobs that are left, and the thread."""
        self._inbox.put(self._stop)
        await asyncio.to_thread(self._thread.join)

    async def call(self, function: Callable[[], T]) -> T:
        """The result of a function that uses torch, run between two ticks."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._inbox.put(run)
        return await asyncio.wrap_future(future)

    def submit(self, job: Job) -> None:
        """Take a job in. Its mailbox gets its events, the last one `Ended`."""
        self._inbox.put(lambda: self._admit(job))

    def cancel(self, job: Job, then: Callable[[], None]) -> None:
        """End a job before its next step; one that has ended stays as it is. `then` is called on the event loop when
        nothing uses its model any more."""

        def run() -> None:
            self._end(job, Cancelled("the job was cancelled"))
            self._loop.call_soon_threadsafe(then)

        self._inbox.put(run)

    def forget_limits(self) -> None:
        """Memory was freed: learn anew how much fits into it."""
        self._inbox.put(self.recovery.limits.forget)

    def lose(self, error: DeviceLost) -> None:
        """End everything: the device was seen to be lost elsewhere."""
        self._inbox.put(lambda: self._lose(error))

    @torch.inference_mode()
    def _run(self) -> None:
        while not self._stopping:
            try:
                self._take_in()
                if self._batcher:
                    self._take_turn()
            except DeviceLost as error:
                self._lose(error)
            except BaseException as error:  # without this thread nothing goes on: say so rather than hang
                log.critical("the engine failed", exc_info=error)
                self._lose(DeviceLost("the engine failed; the server will be restarted"))
            self._post()

    def _take_in(self) -> None:
        """Do what was asked for since the last tick; with nothing to step, wait for it."""
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
        if job.ended:
            return
        try:
            self._batcher.add(job)
        except Exception as error:  # a plugin could not say its key
            self._fail(job, error)
        self._waiting.stale = True

    def _row_limit(self, lane: Lane) -> int:
        return self.recovery.limits.of(work("denoise", lane.seats[0].job.request), self._max_batch_rows)

    def _make_room(self) -> bool:
        self._prompts.clear()
        self._plugins.release()
        return self._relieve()

    def _take_turn(self) -> None:
        lane = self._batcher.turn()
        seats = lane.gather(self._row_limit(lane))
        try:
            self._tick(seats)
            self._pace.keep(seats[0].job.plan.model.family.device)
        except DeviceLost:
            raise
        except Exception as error:  # a fault of our own: its jobs end, the server goes on
            for seat in seats:
                self._fail(seat.job, error)

    def _tick(self, seats: Sequence[Seat]) -> None:
        """One evaluation: the whole of the loop's work."""
        self.ticks += 1
        if not seats[0].job.plan.model.placement.swapping:
            self._begin(seats)
            self._step(_seated(seats, done=False))
            self._finish(_seated(seats, done=True))
            return
        turns = turns_now(seats)
        self._step(_seated(seats, done=False))
        if turns:
            self._begin(seats)
            self._finish(_seated(seats, done=True))

    def _step(self, seated: Sequence[tuple[Seat, Sample]]) -> None:
        if not seated:  # a strength can leave no step
            return
        outcomes = denoise.predict([sample for _, sample in seated], self.recovery)
        self._show(self._advance(seated, outcomes))

    def _begin(self, seats: Sequence[Seat]) -> None:
        """Begin those whose turn comes for the first time: the prompts of all, then the rest, so that under offload
        each network comes once."""
        new = [seat for seat in seats if seat.sample is None]
        for seat in new:
            self._begin_one(seat, self._make)
        self._fetch_prompts([seat for seat in new if seat.sample is not None])
        for part in (self._encode, self._prepare):
            for seat in new:
                self._begin_one(seat, part)

    def _begin_one(self, seat: Seat, part: Callable[[Seat], None]) -> None:
        job, arrived = seat.job, time.monotonic()
        if job.ended:
            return
        if job.started is None:
            job.started, job.swaps = arrived, job.plan.model.placement.swaps
            self._waiting.started(arrived)
            self._waiting.stale = True
        try:
            part(seat)
        except Exception as error:
            self._fail(job, error)
            return
        seat.began = time.monotonic()
        job.encode_prompt_seconds += seat.began - arrived

    def _make(self, seat: Seat) -> None:
        seat.sample = prepare.seated(seat)

    def _fetch_prompts(self, seats: Sequence[Seat]) -> None:
        began = time.monotonic()
        self._prompts.fetch([(seat.sample, seat.job.plan.prompts) for seat in seats if seat.sample], self.recovery)
        seconds = time.monotonic() - began
        for job in {seat.job for seat in seats}:
            job.encode_prompt_seconds += seconds

    def _encode(self, seat: Seat) -> None:
        assert seat.sample is not None
        rows = partial(self._prompts.rows, seat.sample, seat.job.plan.prompts)
        seat.sample.rows = self.recovery.once(rows)
        _warn(seat.job, *(warning for row in seat.sample.rows for warning in row.warnings))

    def _prepare(self, seat: Seat) -> None:
        assert seat.sample is not None
        seat.sample = self.recovery.once(partial(prepare.begin, seat.sample))

    def _advance(
        self, seated: Sequence[tuple[Seat, Sample]], outcomes: Sequence[Outcome[list[torch.Tensor]]]
    ) -> list[tuple[Seat, torch.Tensor]]:
        """Step the samples and say so; the clean estimates where previews are due."""
        for (seat, _), outcome in zip(seated, outcomes, strict=True):
            if isinstance(outcome, DarkroomError):
                self._fail(seat.job, outcome)
        going = [
            (seat, seat.job.plan.steps.ends.get(sample.evaluation), sample, outcome)
            for (seat, sample), outcome in zip(seated, outcomes, strict=True)
            if not isinstance(outcome, DarkroomError) and not seat.job.ended  # nor has another image of its job failed
        ]
        rows, now = sum(seat.rows for seat, _ in seated), time.monotonic()
        turns = [
            stepping.Turn(sample, outputs, step is not None and wants_preview(seat, step, now))
            for seat, step, sample, outputs in going
        ]
        estimates = []
        for (seat, step, sample, _), advanced in zip(going, stepping.advance(turns, self.recovery), strict=True):
            if isinstance(advanced, DarkroomError):
                self._fail(seat.job, advanced)
                continue
            if step is not None:
                self._say(seat.job, _step_done(seat, sample, step, rows))
            if advanced is not None:
                estimates.append((seat, advanced))
        return estimates

    def _show(self, estimates: Sequence[tuple[Seat, torch.Tensor]]) -> None:
        """Make the previews that are due. One that fails is left out with a warning: the picture is worth more."""
        for mode in dict.fromkeys(seat.job.request.preview.mode for seat, _ in estimates):
            wanted = [each for each in estimates if each[0].job.request.preview.mode == mode and not each[0].job.ended]
            for (seat, _), outcome in zip(wanted, self._decoders.show(wanted, self.recovery), strict=True):
                seat.previewed = time.monotonic()
                if isinstance(outcome, DarkroomError):
                    _warn(seat.job, f"a preview is missing: {outcome}")
                    continue
                assert seat.sample is not None
                step = seat.job.plan.steps.ends[seat.sample.evaluation - 1]
                self._say(seat.job, PreviewMade(seat.index, step, outcome, mode))

    def _finish(self, done: Sequence[tuple[Seat, Sample]]) -> None:
        done = [(seat, sample) for seat, sample in done if not seat.job.ended]
        began = time.monotonic()
        aside = not any(seat.job.plan.model.placement.swapping for seat, _ in done)
        outcomes = decode.decode([sample for _, sample in done], self.recovery, aside)
        seconds = time.monotonic() - began
        for job in {seat.job for seat, _ in done}:
            job.decode_seconds += seconds
        for (seat, _), outcome in zip(done, outcomes, strict=True):
            self._deliver(seat, outcome)

    def _deliver(self, seat: Seat, outcome: Outcome[decode.Decoded]) -> None:
        job = seat.job
        if isinstance(outcome, DarkroomError):
            self._end(job, outcome)
            return
        if outcome.tiled:
            _warn(job, TILED)
        self._say(job, ImageDecoded(seat.index, outcome.picture, outcome.findings))
        self._batcher.drop([seat])
        job.seats_left -= 1
        if job.seats_left == 0:
            self._end(job, None)

    def _end(self, job: Job, error: Exception | None) -> None:
        """The one way in which a job ends: its seats are free, its client is told."""
        if job.ended:
            return
        job.ended = True
        self._batcher.drop_job(job)
        self._waiting.stale = True
        now = time.monotonic()
        self._say(job, Ended(error, job.timings(now), tuple(job.warnings)))
        seconds = round(now - job.arrived, 3)
        swaps = job.plan.model.placement.swaps - job.swaps if job.started is not None else 0
        moved = f", with {swaps} swaps" if swaps else ""
        log.info("job %s ended after %s s%s: %s", job.request_id, seconds, moved, error or "done")

    def _fail(self, job: Job, error: Exception) -> None:
        """End a job by what a plugin or the model raised.

        :raises DeviceLost: it is more than this job that failed
        """
        failure = to_domain_error(error)
        if isinstance(failure, DeviceLost):
            raise failure
        self._end(job, failure)

    def _end_all(self, error: Exception) -> None:
        for job in self._batcher.jobs():
            self._end(job, error)

    def _say(self, job: Job, event: Event) -> None:
        if not job.ended or isinstance(event, Ended):
            self._outbox.append((job.mailbox, event))

    def _post(self) -> None:
        """Hand over what happened, once a tick: waking the event loop costs more than an event."""
        for job, queued in self._waiting.news(time.monotonic()):
            self._say(job, queued)
        if self._outbox:
            self._loop.call_soon_threadsafe(_deliver, self._outbox)
            self._outbox = []


def _seated(seats: Sequence[Seat], done: bool) -> list[tuple[Seat, Sample]]:
    """Those that have begun and go on, or are done."""
    begun = [(seat, seat.sample) for seat in seats if seat.sample is not None and not seat.job.ended]
    return [(seat, sample) for seat, sample in begun if sample.done is done]


def _deliver(outbox: Sequence[tuple[Mailbox, Event]]) -> None:
    for mailbox, event in outbox:
        mailbox.put(event)


def _warn(job: Job, *warnings: str) -> None:
    job.warnings += (warning for warning in dict.fromkeys(warnings) if warning not in job.warnings)


def _step_done(seat: Seat, sample: Sample, step: int, rows: int) -> StepDone:
    steps = seat.job.plan.steps
    elapsed, began = time.monotonic() - seat.began, steps.begins[step]
    return StepDone(
        image_index=seat.index,
        step=step,
        step_count=steps.count,
        timestep=float(sample.timesteps[began]),
        sigma=noise_level(sample.scheduler, began),
        elapsed=elapsed,
        eta=elapsed / step * (steps.count - step),
        batch_rows=rows,
    )
