"""The limits of the present call's token, or of a kept job's that a restart takes up. Without tokens there are none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from darkroom.v1 import parameters_pb2
from darkroom_plugins.quoting import quoted
from darkroom_server.api.access import caller
from darkroom_server.errors import ModelNotAllowed, OperatorRequired, OverTokenLimit, QueueFull

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import TypeAlias

    from darkroom_plugins.request import Request
    from darkroom_server.config.settings import TokenSettings
    from darkroom_server.jobs.job import Job

    ActiveJobs: TypeAlias = Callable[[], Collection[Job]]  # of a token: counted only where there is a limit

PRIORITIES: dict[Any, str] = {
    parameters_pb2.PRIORITY_LOW: "low",
    parameters_pb2.PRIORITY_NORMAL: "normal",
    parameters_pb2.PRIORITY_HIGH: "high",
}
RETRY_SECONDS = 2.0  # after which one of the token's own jobs may have ended


def admit_job(active: ActiveJobs) -> None:
    """Whether the token may have another job beside its active ones.

    :raises QueueFull: it may not
    """
    known = _token()
    if known is not None and known.max_jobs is not None and (count := len(active())) >= known.max_jobs:
        raise QueueFull(f"this token may have {known.max_jobs} jobs at once, and has {count}", RETRY_SECONDS)


def admit_model(name: str, default: str = "") -> None:
    """Whether the token may use a model. To be asked before it is looked up: whether others exist is not told.

    :raises ModelNotAllowed: it may not
    """
    if not may_use(name or default):
        known = _token()
        allowed = ", ".join(known.models or ()) if known else ""
        raise ModelNotAllowed(f"this token may not use the model {quoted(name or default)}; it may use: {allowed}")


def may_use(model: str) -> bool:
    """Whether the token may use a model."""
    known = _token()
    return known is None or known.models is None or model in known.models


def admit_priority(message: Any) -> str:
    """The priority of a request's job; that of a request that has none, or no known one, is normal.

    :raises OperatorRequired: the token may not have it
    """
    asked = PRIORITIES.get(getattr(message, "priority", 0), "normal")
    known = _token()
    if asked == "high" and known is not None and known.role != "operator":
        raise OperatorRequired("a high priority wants an operator's token, and this is a user's")
    return asked


def admit_pixels(job: Job, request: Request, active: ActiveJobs) -> None:
    """Note whose a job is, and the pixels of its pictures; and whether the token may have them beside those of its
    active jobs.

    :raises QueueFull: later
    :raises OverTokenLimit: never
    """
    width, height = request.final_size
    count_job(job, width * height * request.num_images)
    known = _token()
    if known is None or known.max_pixels is None:
        return
    limit = f"this token may have {known.max_pixels} pixels at once, width x height x num_images"
    if job.pixels > known.max_pixels:
        raise OverTokenLimit(f"{limit}, not {job.pixels}")
    others = sum(each.pixels for each in active() if each is not job)
    if others + job.pixels > known.max_pixels:
        raise QueueFull(f"{limit}; its other jobs have {others}, and this one {job.pixels}", RETRY_SECONDS)


def count_job(job: Job, pixels: int) -> None:
    """Note whose a job is, and the pixels of its pictures."""
    job.pixels = pixels
    if (present := caller()) is not None:
        job.bearer = bearer()
        present.usage.jobs += 1
        present.usage.pixels += pixels


def bearer() -> str:
    """The name of the caller's token."""
    known = _token()
    return known.name if known is not None else ""


def _token() -> TokenSettings | None:
    present = caller()
    return present.token if present else None
