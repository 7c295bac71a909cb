"""The loop that steps all images in the making, on a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from darkroom_plugins.errors import Cancelled, DarkroomError, DeviceLost
from darkroom_plugins.sample import Sample
from darkroom_server import denoise, sampling, stepping
from darkroom_server.batcher import Batcher
from darkroom_server.events import Ended, Event, ImageDecoded, PreviewMade, StepDone
from darkroom_server.jobs import Job, Seat
from darkroom_server.mailbox import Mailbox
from darkroom_server.previews import PreviewDecoders, wants_preview
from darkroom_server.prompts import PromptCache
from darkroom_server.waiting import WaitingRoom

log = logging.getLogger(__name__)

T = TypeVar("T")


class Engine:
    """Steps every job's samples, and puts what happens into the jobs' mailboxes on the event loop.

    `start`, `call`, `submit`, `cancel` and `stop` are for the event loop; all else runs on the engine's thread, the
    only one that runs torch while the server serves. `on_lost` is called there when the device is lost.
    """

    def __init__(self, max_batch_rows: int, decoders: PreviewDecoders, on_lost: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._max_batch_rows = max_batch_rows
        self._decoders = decoders
        self._on_lost = on_lost
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._outbox: list[tuple[Mailbox, Event]] = []
        self._prompts = PromptCache()
        self._batcher = Batcher()
        self._waiting = WaitingRoom(self._batcher, max_batch_rows)
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

    def _take_turn(self) -> None:
        seats = self._batcher.turn().gather(self._max_batch_rows)
        try:
            self._tick(seats)
        except DeviceLost:
            raise
        except Exception as error:  # a fault of our own: its jobs end, the server goes on
            for seat in seats:
                self._fail(seat.job, error)

    def _tick(self, seats: Sequence[Seat]) -> None:
        """One evaluation: the whole of the loop's work."""
        self.ticks += 1
        seated = [(seat, sample) for seat in seats if (sample := self._begin(seat))]
        self._step([(seat, sample) for seat, sample in seated if not sample.done])
        self._finish([(seat, sample) for seat, sample in seated if sample.done])

    def _step(self, seated: Sequence[tuple[Seat, Sample]]) -> None:
        if not seated:  # a strength can leave no step
            return
        outputs = sampling.predict([sample for _, sample in seated])
        rows = sum(seat.rows for seat, _ in seated)
        self._show(self._advance(seated, outputs, rows))

    def _begin(self, seat: Seat) -> Sample | None:
        """The seat's sample, begun if its turn comes for the first time; None where its job has ended."""
        job = seat.job
        if seat.sample is not None or job.ended:
            return None if job.ended else seat.sample
        arrived = time.monotonic()
        if job.started is None:
            job.started = arrived
            self._waiting.started(arrived)
            self._waiting.stale = True
        try:
            seat.sample = sampling.begin(seat, self._prompts)
        except Exception as error:
            self._fail(job, error)
            return None
        _warn(job, *(warning for row in seat.sample.rows for warning in row.warnings))
        seat.began = time.monotonic()
        job.encode_prompt_seconds += seat.began - arrived
        return seat.sample

    def _advance(
        self, seated: Sequence[tuple[Seat, Sample]], outputs: Sequence[sampling.Outcome[torch.Tensor]], rows: int
    ) -> list[tuple[Seat, torch.Tensor]]:
        """Step the samples and say so; the clean estimates where previews are due."""
        going = []
        for (seat, sample), output in zip(seated, outputs, strict=True):
            if isinstance(output, DarkroomError):
                self._fail(seat.job, output)
            else:
                going.append((seat, sample, output))
        going = [each for each in going if not each[0].job.ended]  # with another image of theirs
        steps = [seat.job.plan.steps.ends.get(sample.evaluation) for seat, sample, _ in going]
        now = time.monotonic()
        wanted = [
            step is not None and wants_preview(seat, step, now) for (seat, _, _), step in zip(going, steps, strict=True)
        ]
        estimates = stepping.advance_all([each[1] for each in going], [each[2] for each in going], wanted)
        shown = []
        for (seat, sample, _), step, estimate in zip(going, steps, estimates, strict=True):
            if isinstance(estimate, DarkroomError):
                self._fail(seat.job, estimate)
                continue
            if step is not None:
                self._say(seat.job, _step_done(seat, sample, step, rows))
            if estimate is not None:
                shown.append((seat, estimate))
        return shown

    def _show(self, estimates: Sequence[tuple[Seat, torch.Tensor]]) -> None:
        """Make the previews that are due. One that fails is left out with a warning: the picture is worth more."""
        for mode in dict.fromkeys(seat.job.request.preview.mode for seat, _ in estimates):
            wanted = [each for each in estimates if each[0].job.request.preview.mode == mode and not each[0].job.ended]
            for (seat, _), outcome in zip(wanted, self._decoders.show(wanted) if wanted else (), strict=True):
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
        outcomes = sampling.decode([sample for _, sample in done])
        seconds = time.monotonic() - began
        for job in {seat.job for seat, _ in done}:
            job.decode_seconds += seconds
        for (seat, _), outcome in zip(done, outcomes, strict=True):
            self._deliver(seat, outcome)

    def _deliver(self, seat: Seat, outcome: sampling.Outcome[Any]) -> None:
        job = seat.job
        if isinstance(outcome, DarkroomError):
            self._end(job, outcome)
            return
        self._say(job, ImageDecoded(seat.index, outcome))
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
        log.info("job %s ended after %s s: %s", job.request_id, seconds, error or "done")

    def _fail(self, job: Job, error: Exception) -> None:
        """End a job by what a plugin or the model raised.

        :raises DeviceLost: it is more than this job that failed
        """
        failure = sampling.known(error)
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
        sigma=denoise.noise_level(sample.scheduler, began),
        elapsed=elapsed,
        eta=elapsed / step * (steps.count - step),
        batch_rows=rows,
    )
