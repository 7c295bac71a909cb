"""ListJobs and GetJob: jobs as their owners and operators see them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from darkroom.v1 import image_service_pb2 as pb
from darkroom_plugins.errors import InvalidRequest, Violation
from darkroom_server.api.keeper import no_such_job
from darkroom_server.api.quotas import PRIORITIES
from darkroom_server.jobs.kept import JobState

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from darkroom.v1 import events_pb2
    from darkroom_server.api.keeper import Keeper
    from darkroom_server.config.settings import TokenSettings
    from darkroom_server.jobs.job import Job, Seen
    from darkroom_server.jobs.kept import KeptJob
    from darkroom_server.jobs.registry import Registry

DEFAULT_PAGE, MOST = 100, 1000  # jobs of a page
THUMBNAIL_EDGE = 256  # pixels
STATES: dict[JobState, Any] = {state: pb.JobState.Value(f"JOB_STATE_{state.name}") for state in JobState}

NUMBERS = {priority: number for number, priority in PRIORITIES.items()}


class Thumbnails(Protocol):
    """Makes them."""

    async def thumbnail(self, data: bytes, edge: int) -> bytes:
        """A small JPEG of a picture that this server made."""


class _Entry(NamedTuple):
    """A job in the order of the list."""

    created: float
    request_id: str
    owner: str
    job: Job | None
    kept: KeptJob | None

    @property
    def ended(self) -> bool:
        return self.kept is not None and self.kept.ended is not None


class JobList:
    """The jobs that there are, active and kept."""

    def __init__(self, jobs: Registry, keeper: Keeper, encoder: Thumbnails, tokens: Iterable[TokenSettings]) -> None:
        self._jobs, self._keeper, self._encoder = jobs, keeper, encoder
        self._tokens = {each.sha256.lower(): each for each in tokens}

    def page(self, owner: str, size: int, token: str, active_only: bool = False) -> pb.ListJobsResponse:
        """A page of the jobs that `owner` may see, newest first; without those that have ended if `active_only`.

        :raises InvalidRequest: for a bad size or token
        """
        if not 0 <= size <= MOST:
            raise InvalidRequest([Violation("page_size", f"must be from 0 to {MOST}, not {size}")])
        entries = [each for each in self._visible(owner) if not (active_only and each.ended)]
        place = _place(entries, token) if token else 0
        shown = entries[place : place + (size or DEFAULT_PAGE)]
        rest = entries[place + len(shown) :]
        return pb.ListJobsResponse(
            jobs=[self._message(each, owner) for each in shown], next_page_token=_token(rest[0]) if rest else ""
        )

    async def job(self, owner: str, request_id: str) -> pb.GetJobResponse:
        """One of the jobs that `owner` may see, with its thumbnail.

        :raises NotFound: there is none of this id
        """
        found = [each for each in self._visible(owner) if each.request_id == request_id]
        if not found:
            raise no_such_job(request_id, "active or kept")
        entry = next((each for each in found if each.owner == owner), found[0])
        message = self._message(entry, owner)
        thumbnail = await self._thumbnail(entry.kept) if entry.kept is not None else b""
        return pb.GetJobResponse(job=message, thumbnail=thumbnail)

    def _visible(self, owner: str) -> list[_Entry]:
        token = self._tokens.get(owner)
        all_clients = not self._tokens or (token is not None and token.role == "operator")
        kept = {(each.owner, each.request_id): each for each in self._keeper.jobs}
        active = {(each.token, each.request_id): each for each in self._jobs.active}
        entries = [
            _Entry((kept.get(key) or active[key]).created, key[1], key[0], active.get(key), kept.get(key))
            for key in {**active, **kept}
            if all_clients or key[0] == owner
        ]
        return sorted(entries, key=lambda each: each[:3], reverse=True)

    def _message(self, entry: _Entry, owner: str) -> pb.Job:
        kept, token = entry.kept, self._tokens.get(entry.owner)
        message = pb.Job(request_id=entry.request_id, owner=token.name if token else "", kept=kept is not None)
        _set_time(message.create_time, entry.created)
        if kept is not None:
            seen, state = kept.seen, kept.state
            _describe_kept(message, kept, self._keeper.keep_seconds)
        else:
            assert entry.job is not None
            seen, state = entry.job.seen, JobState.QUEUED if entry.job.queued else JobState.RUNNING
            _describe_active(message, entry.job)
        message.state = STATES[state]
        _add_progress(message, seen)
        if entry.owner != owner:
            message.prompt = ""
        return message

    async def _thumbnail(self, kept: KeptJob) -> bytes:
        """The newest picture or preview, made small; empty if there is none."""
        history = await self._keeper.history(kept)
        newest, parts = b"", bytearray()
        for event in history:
            match event.WhichOneof("event"):
                case "preview":
                    newest = event.preview.image_bytes
                case "image":
                    parts = bytearray(event.image.image_bytes)
                    newest = bytes(parts) if len(parts) == event.image.total_bytes else newest
                case "chunk" if event.chunk.HasField("image_index"):
                    parts += event.chunk.data
        if kept.error is None and kept.ended is not None and parts:
            newest = bytes(parts)
        return await self._encoder.thumbnail(newest, THUMBNAIL_EDGE) if newest else b""


def _describe_kept(message: pb.Job, kept: KeptJob, keep_seconds: float) -> None:
    if kept.accepted is not None:
        _describe_accepted(message, kept.accepted)
    if kept.job is not None:
        message.priority = NUMBERS[kept.job.priority]
    if kept.ended is not None:
        _set_time(message.end_time, kept.ended)
        _set_time(message.expire_time, kept.ended + keep_seconds)
    if kept.error is not None and kept.state is JobState.FAILED:
        message.error, message.error_reason = str(kept.error), kept.error.reason


def _describe_accepted(message: pb.Job, accepted: events_pb2.AcceptedEvent) -> None:
    given = accepted.parameters
    message.task, message.model, message.prompt = given.task, given.model, given.prompt
    message.num_images, message.step_count = len(accepted.seeds), accepted.step_count
    last = given.hires_fix if given.HasField("hires_fix") else given
    message.width, message.height = last.width, last.height


def _describe_active(message: pb.Job, job: Job) -> None:
    message.priority = NUMBERS[job.priority]
    if job.accepted is not None:
        _describe_accepted(message, job.accepted)
    elif (plan := job.planned) is not None:
        request = plan.request
        message.task, message.model, message.prompt = request.task, request.model, request.prompt
        message.num_images, message.step_count = request.num_images, plan.step_count
        message.width, message.height = request.final_size


def _add_progress(message: pb.Job, seen: Seen) -> None:
    message.step, message.images_done = seen.step, seen.images
    message.batch_rows, message.step_seconds = seen.rows, seen.step_seconds
    if seen.started is not None:
        _set_time(message.start_time, seen.started)
    if seen.position is not None:
        message.position = seen.position
    if seen.estimated_start is not None:
        _set_time(message.estimated_start_time, seen.estimated_start)
    if seen.estimated_end is not None and not message.HasField("end_time"):
        _set_time(message.estimated_end_time, seen.estimated_end)


def _set_time(field: Timestamp, seconds: float) -> None:
    field.FromNanoseconds(int(seconds * 1e9))


def _token(entry: _Entry) -> str:
    """Where a page begins: at this job, or, if it is gone by then, at the next."""
    return f"{entry.created!r}:{entry.request_id}"


def _place(entries: Sequence[_Entry], token: str) -> int:
    """:raises InvalidRequest: it is no token of ours"""
    created, _, request_id = token.partition(":")
    try:
        first = (float(created), request_id)
    except ValueError:
        problem = "must be next_page_token of the page before"
        raise InvalidRequest([Violation("page_token", problem)]) from None
    return next((n for n, each in enumerate(entries) if each[:2] <= first), len(entries))
