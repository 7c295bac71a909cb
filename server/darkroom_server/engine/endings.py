"""How jobs end, and what the log says of it."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from darkroom_plugins.errors import DarkroomError
from darkroom_server.errors import Cancelled, DeadlineExceeded, DeviceLost, to_domain_error
from darkroom_server.jobs.events import Ended

if TYPE_CHECKING:
    from darkroom_server.engine.batcher import Batcher
    from darkroom_server.engine.outbox import Outbox
    from darkroom_server.engine.queue_positions import QueuePositions
    from darkroom_server.engine.slot import Slot
    from darkroom_server.jobs.job import Job
    from darkroom_server.jobs.numbers import EngineNumbers

log = logging.getLogger(__name__)


class Endings:
    """Ends jobs, on the engine's thread: all end here."""

    def __init__(self, batcher: Batcher, numbers: EngineNumbers, positions: QueuePositions, outbox: Outbox) -> None:
        self._batcher, self._numbers, self._positions, self._outbox = batcher, numbers, positions, outbox
        self.logs_prompts = False

    def complete(self, slot: Slot) -> None:
        """A slot's image is done; with the last one its job is."""
        self._batcher.drop([slot])
        slot.job.progress.slots_left -= 1
        if slot.job.progress.slots_left == 0:
            self.end(slot.job, None)

    def end(self, job: Job, error: Exception | None) -> None:
        """End a job, unless it has ended: free its slots, emit `Ended`, log."""
        if job.progress.ended:
            return
        job.progress.ended = True
        self._batcher.drop_job(job)
        self._numbers.ends[reason_of(error)] += 1
        self._positions.stale = True
        now = time.monotonic()
        self._outbox.emit(job, Ended(error, job.timings(now), tuple(job.progress.warnings)))
        if job.progress.then is not None:
            self._outbox.release(job.progress.then)
            job.progress.then = None  # it has the job, which else were in a cycle of references
        swaps = job.plan.model.placement.swaps - job.progress.swaps if job.progress.started is not None else 0
        log_end(job, error, now, f", with {swaps} swaps" if swaps else "", **_record(job, now, self.logs_prompts))

    def fail(self, job: Job, error: BaseException) -> None:
        """End a job with an error of a plugin or the model.

        :raises DeviceLost: which ends all jobs
        """
        failure = to_domain_error(error)
        if isinstance(failure, DeviceLost):
            raise failure
        self.end(job, failure)

    def end_all(self, error: Exception) -> None:
        """End all jobs."""
        for job in self._batcher.jobs():
            self.end(job, error)


def reason_of(error: BaseException | None) -> str:
    """Why a job ended, for programs."""
    if error is None:
        return "OK"
    if isinstance(error, DarkroomError) and error.reason:
        return error.reason
    if isinstance(error, DeadlineExceeded):
        return "DEADLINE"
    return "CANCELLED" if isinstance(error, Cancelled) else "INTERNAL"


def log_end(job: Job, error: BaseException | None, now: float, moved: str = "", **record: Any) -> None:
    """Write a job's line, with what a JSON record has beside it."""
    whose, seconds = f" of {job.bearer}" if job.bearer else "", round(now - job.arrived, 3)
    known = {"request_id": job.request_id, "token": job.bearer, "outcome": reason_of(error), "seconds": seconds}
    said = (job.request_id, whose, seconds, moved, error or "done")
    log.info("job %s%s ended after %s s%s: %s", *said, extra={**known, **record})


def _record(job: Job, now: float, with_prompt: bool) -> dict[str, Any]:
    request = job.request
    width, height = request.final_size
    record: dict[str, Any] = {
        "model": request.model,
        "task": request.task,
        "width": width,
        "height": height,
        "images": request.num_images,
        "steps": request.num_inference_steps,
        **{f"{phase}_seconds": round(spent, 3) for phase, spent in asdict(job.timings(now)).items()},
    }
    return record | ({"prompt": request.prompt} if with_prompt else {})
