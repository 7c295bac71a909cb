"""What the log says of ended jobs."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from darkroom_server.errors import Cancelled

if TYPE_CHECKING:
    from darkroom_server.jobs.job import Job

log = logging.getLogger(__name__)


def reason_of(error: Exception | None) -> str:
    """Why a job ended, for programs."""
    if error is None:
        return "OK"
    return getattr(error, "reason", "") or ("CANCELLED" if isinstance(error, Cancelled) else "INTERNAL")


def log_end(job: Job, error: Exception | None, now: float, *, with_prompt: bool) -> None:
    """Write a job's line."""
    seconds = round(now - job.arrived, 3)
    swaps = job.plan.model.placement.swaps - job.progress.swaps if job.progress.started is not None else 0
    moved = f", with {swaps} swaps" if swaps else ""
    whose, record = f" of {job.bearer}" if job.bearer else "", _record(job, error, now, with_prompt)
    log.info("job %s%s ended after %s s%s: %s", job.request_id, whose, seconds, moved, error or "done", extra=record)


def _record(job: Job, error: Exception | None, now: float, with_prompt: bool) -> dict[str, Any]:
    """What the log has of a job, beside its line."""
    request = job.request
    record: dict[str, Any] = {
        "request_id": job.request_id,
        "token": job.bearer,
        "model": request.model,
        "task": request.task,
        "width": request.width,
        "height": request.height,
        "images": request.num_images,
        "steps": request.num_inference_steps,
        "outcome": reason_of(error),
        "seconds": round(now - job.arrived, 3),
        **{f"{phase}_seconds": round(spent, 3) for phase, spent in asdict(job.timings(now)).items()},
    }
    return record | ({"prompt": request.prompt} if with_prompt else {})
