"""Kept jobs: runs them without their clients, writes them to the log, and takes them up again after a restart."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from contextlib import aclosing, suppress
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from google.rpc.status_pb2 import Status

from darkroom.v1 import events_pb2, image_service_pb2
from darkroom_plugins.errors import DarkroomError, JobFailed, Violation
from darkroom_plugins.quoting import quoted
from darkroom_server.api import quotas
from darkroom_server.api.access import call_as, caller_of
from darkroom_server.api.status import error_of, outcome_of, serialized
from darkroom_server.api.stored_events import BYTES, from_log, picture_of, resolved, to_log
from darkroom_server.errors import (
    DeadlineExceeded,
    DeviceLost,
    GivenUp,
    JobLogFull,
    JobLogUnavailable,
    NotFound,
    RequestIdInUse,
    ShuttingDown,
    Unauthenticated,
)
from darkroom_server.jobs.history import History
from darkroom_server.jobs.job import Seen
from darkroom_server.jobs.kept import KeptJob, KeptJobs
from darkroom_server.jobs.log import DONE, JobLog, LoggedJob

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from darkroom_server.api.backend import Backend
    from darkroom_server.config.settings import Settings
    from darkroom_server.jobs.job import Job
    from darkroom_server.jobs.numbers import CallNumbers

log = logging.getLogger(__name__)

REQUESTS: dict[str, Any] = {"Generate": image_service_pb2.GenerateRequest, "Edit": image_service_pb2.EditRequest}
RUN_SEQUENCES = 2**32  # sequences of one run; those of the next are greater
# A job with which the server ends again and again is given up: it may be why. One that only waited is not.
MAX_TURNS = 10  # runs that it had begun in
MAX_RUNS = 100  # of a job that ends the server before that is noted
SMALL = 64 * 1024  # bytes of a message that is hashed on the event loop
EVENT_BYTES = 256  # of an event in memory, beside its message's
SWEEP_SECONDS = 60.0
CLOSE_SECONDS = 5.0
INTERRUPTED = (ShuttingDown, DeviceLost, JobLogFull, JobLogUnavailable)  # not the job's own end: it is run again


class Keeper:
    """The kept jobs of a server. For the event loop's thread."""

    def __init__(self, backend: Backend, settings: Settings, numbers: CallNumbers) -> None:
        self._backend = backend
        self._tokens, self._numbers = settings.tokens, numbers
        self._kept = KeptJobs(settings.keep_results_seconds, settings.max_kept_bytes)
        self._log = JobLog(settings.state_dir) if settings.state_dir is not None else None
        self._running: set[asyncio.Task[None]] = set()
        self._sweeping: asyncio.Task[None] | None = None

    @property
    def jobs(self) -> list[KeptJob]:
        """All kept jobs, oldest first."""
        return list(self._kept)

    @property
    def keep_seconds(self) -> float:
        """How long a job is kept after its end."""
        return self._kept.keep_seconds

    async def open(self) -> None:
        """Read the log, and begin its unfinished jobs again.

        :raises StateDirInUse: another server has it
        """
        for logged in await self._log.open() if self._log is not None else ():
            try:
                await self._restore(logged)
            except DarkroomError as error:
                log.error("the kept job %s cannot be read: %s", logged.request_id, error)
        self._trim()
        self._sweeping = asyncio.create_task(self._sweep())

    async def close(self) -> None:
        """Write what is left to write. To be called when no job runs any more."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=CLOSE_SECONDS)
        if self._log is not None:
            await asyncio.to_thread(self._log.close)

    def find(self, owner: str, request_id: str) -> KeptJob | None:
        """The kept job of this owner and id."""
        return self._kept.find(owner, request_id)

    async def attach(self, rpc: str, message: Any, job_of: Any, owner: str, seconds: float | None) -> KeptJob:
        """The kept job of a request: the one that there is, else a new one, which is run.

        :param job_of: registers a job for a message
        :param seconds: until the job's deadline
        :raises RequestIdInUse: the id is that of another request
        :raises DarkroomError: no job can be kept now
        """
        digest = await self._digest(message)
        kept = self._kept.find(owner, message.request_id)
        if kept is None:
            return self._begin(rpc, message, job_of, digest, seconds)
        if kept.digest != digest:
            raise RequestIdInUse(f"request_id {quoted(message.request_id)} is that of a kept job of another request")
        return kept

    async def history(self, kept: KeptJob) -> History[events_pb2.JobEvent]:
        """What a kept job has sent, and goes on to send.

        :raises NotFound: its pictures are gone from the disk, or are damaged
        """
        if kept.history is not None:
            return kept.history
        assert self._log is not None
        assert kept.id is not None
        stored, whole = await self._log.events(kept.id)
        if not stored or not whole:
            self._kept.remove(kept)
            await self._log.forget([kept.id])
            raise no_such_job(kept.request_id)
        history: History[events_pb2.JobEvent] = History()
        for event in from_log(stored):
            _append(history, event)
        history.end(kept.error)
        return history

    def _begin(self, rpc: str, message: Any, job_of: Any, digest: bytes, seconds: float | None) -> KeptJob:
        if self._log is not None and self._log.refusal is not None:
            raise self._log.refusal
        self._trim()
        job: Job = job_of(message)
        deadline = None if seconds is None else job.created + seconds
        kept = KeptJob(
            job.token, job.request_id, digest, job.created, message.ByteSize(), job.seen, job, deadline=deadline
        )
        try:
            self._kept.add(kept)
        except DarkroomError:
            self._backend.jobs.release(job)
            raise
        self._start(kept, rpc, message)
        return kept

    def _start(self, kept: KeptJob, rpc: str, message: Any, refusal: DarkroomError | None = None) -> None:
        """Run a job in the present context, by which it has its token's limits; if it is refused, it ends with that."""
        task = asyncio.create_task(self._run(kept, rpc, message, refusal))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, kept: KeptJob, rpc: str, message: Any, refusal: DarkroomError | None) -> None:
        """Run a job to its end, whatever happens to its watchers."""
        job, error, last = kept.job, None, list[events_pb2.JobEvent]()
        assert job is not None
        timer = self._end_at(job, kept.deadline)
        try:
            if refusal is not None:
                raise refusal
            if kept.run > 1:
                assert self._log is not None
                assert kept.id is not None
                await self._log.begin_again(kept.id)
            events = self._backend.events(job, rpc, message, admitted=kept.run > 1)
            async with aclosing(events):
                async for made in events:
                    last = await self._take(kept, rpc, message, made)
        except DarkroomError as failure:
            error = failure.with_traceback(None)
        except Exception:
            log.exception("the kept job %s failed", kept.request_id)
            error = JobFailed("the server failed; its log says more")
        finally:
            if timer is not None:
                timer.cancel()
            self._backend.jobs.release(job)
        await self._end(kept, error, last)

    def _end_at(self, job: Job, deadline: float | None) -> asyncio.TimerHandle | None:
        if deadline is None:
            return None
        late = DeadlineExceeded("the deadline of the call that started the job has passed")
        end = partial(self._backend.jobs.end, job, late)
        return asyncio.get_running_loop().call_later(max(0.0, deadline - time.time()), end)

    async def _take(
        self, kept: KeptJob, rpc: str, message: Any, made: list[events_pb2.JobEvent]
    ) -> list[events_pb2.JobEvent]:
        """Let watchers see the messages of an event, once the log has those that it must not lose. Returns the last
        ones, which they see after the job's end was written."""
        made = [each for each in made if not _was_sent(kept, each)]
        kinds = {each.WhichOneof("event") for each in made}
        if "completed" in kinds:
            return made
        if "accepted" in kinds:
            await self._accept(kept, rpc, message, made[0])
        elif kinds & BYTES.keys():
            await self._write(kept, made)
        assert kept.history is not None
        for each in made:
            _append(kept.history, each)
        return []

    async def _accept(self, kept: KeptJob, rpc: str, message: Any, accepted: events_pb2.JobEvent) -> None:
        if self._log is not None:
            request = await self._backend.jobs.read(resolved, message, accepted.accepted)
            logged = LoggedJob(
                kept.owner, kept.request_id, rpc, kept.digest, request, kept.created, deadline=kept.deadline
            )
            kept.id = await self._log.add(logged, to_log([accepted]))
            kept.logged.add(accepted.sequence)
        kept.accepted = accepted.accepted

    async def _write(self, kept: KeptJob, made: list[events_pb2.JobEvent]) -> None:
        """Write pictures to the log. While that fails, the job goes on in memory."""
        if self._log is None or kept.id is None:
            return
        try:
            await self._log.append(kept.id, to_log(made))
            kept.logged.update(each.sequence for each in made)
        except DarkroomError as error:
            log.error("pictures of the kept job %s are not in the log yet: %s", kept.request_id, error)

    async def _end(self, kept: KeptJob, error: DarkroomError | None, last: list[events_pb2.JobEvent]) -> None:
        history = kept.history
        assert history is not None
        given_up = kept.begun >= MAX_TURNS
        if kept.accepted is None or (isinstance(error, INTERRUPTED) and kept.id is not None and not given_up):
            self._kept.remove(kept)
            history.end(error)
            return
        ended = time.time()
        stored = await self._finish(kept, ended, error, last)
        for each in last:
            _append(history, each)
        kept.ended, kept.error, kept.job = ended, error, None
        history.end(error)
        if stored:
            kept.stored_bytes, kept.request_bytes, kept.history = history.size, 0, None
        self._trim()

    async def _finish(
        self, kept: KeptJob, ended: float, error: DarkroomError | None, last: list[events_pb2.JobEvent]
    ) -> bool:
        """Write a job's end, and all that was not written before; whether the log has it."""
        if self._log is None or kept.id is None:
            return False
        assert kept.history is not None
        left = [each for each in kept.history if each.sequence not in kept.logged]
        outcome, status = (DONE, b"") if error is None else (outcome_of(error), serialized(error))
        try:
            await self._log.finish(kept.id, kept.seen.started, ended, outcome, status, to_log([*left, *last]))
        except DarkroomError as failure:
            log.error("the end of the kept job %s is not in the log: %s", kept.request_id, failure)
            return False
        return True

    async def _restore(self, logged: LoggedJob) -> None:
        """Keep a job of the log, and begin it again if it had not ended."""
        assert self._log is not None
        first, size = await self._log.first_event(logged.id)
        accepted = events_pb2.JobEvent.FromString(first).accepted
        kept = KeptJob(
            logged.owner,
            logged.request_id,
            logged.digest,
            logged.created,
            len(logged.request),
            Seen(started=logged.started),
            history=None,
            accepted=accepted,
            deadline=logged.deadline,
            ended=logged.ended,
            run=logged.runs,
            begun=logged.begun,
            id=logged.id,
            stored_bytes=size,
        )
        if logged.ended is None:
            await self._begin_again(kept, logged)
        elif logged.outcome != DONE:
            kept.error = error_of(Status.FromString(logged.status))
        else:
            kept.seen.images, kept.seen.step = len(accepted.seeds), accepted.step_count
        self._kept.restore(kept)

    async def _begin_again(self, kept: KeptJob, logged: LoggedJob) -> None:
        assert self._log is not None
        kept.history, kept.run = History(), logged.runs + 1
        stored, _ = await self._log.events(logged.id)
        for event in from_log(stored):
            _append(kept.history, event)
            kept.logged.add(event.sequence)
            if (picture := picture_of(event)) is not None:
                kept.sent.add(picture)
        message = REQUESTS[logged.rpc].FromString(logged.request)
        job = self._backend.jobs.register(kept.owner, kept.request_id, len(logged.request), admitted=True)
        job.priority = quotas.PRIORITIES.get(message.priority, "normal")
        job.created, job.base = kept.created, (kept.run - 1) * RUN_SEQUENCES
        kept.job, kept.seen = job, job.seen
        context = copy_context()
        refusal: DarkroomError | None = None
        try:
            context.run(call_as, caller_of(kept.owner, self._tokens, self._numbers))
        except Unauthenticated as error:
            refusal = error
        if kept.begun >= MAX_TURNS or kept.run > MAX_RUNS:
            refusal = GivenUp("the server ended again and again while it did this job")
        job.on_start = partial(self._note_turn, kept, job.on_start)
        context.run(self._start, kept, logged.rpc, message, refusal)

    def _note_turn(self, kept: KeptJob, on_start: Callable[[], None]) -> None:
        """A job that a restart took up has its first turn."""
        on_start()
        assert self._log is not None
        assert kept.id is not None
        kept.begun += 1
        noting = asyncio.create_task(_quietly(self._log.note_turn(kept.id)))
        self._running.add(noting)
        noting.add_done_callback(self._running.discard)

    async def _digest(self, message: Any) -> bytes:
        if message.ByteSize() <= SMALL:
            return _digest(message)
        digest: bytes = await self._backend.jobs.read(_digest, message)
        return digest

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(SWEEP_SECONDS, max(0.1, self._kept.keep_seconds / 4)))
            self._trim()

    def _trim(self) -> None:
        """Forget what need not be kept any more."""
        gone = [kept.id for kept in self._kept.trim() if kept.id is not None]
        if gone:
            assert self._log is not None
            self._forgetting = asyncio.ensure_future(_quietly(self._log.forget(gone)))


async def _quietly(write: Coroutine[Any, Any, None]) -> None:
    """A write to the log that may fail: what it should have deleted, the next start deletes."""
    with suppress(JobLogFull, JobLogUnavailable):
        await write


def no_such_job(request_id: str, kind: str = "kept") -> NotFound:
    """That there is no job of this id."""
    return NotFound("request", [Violation("request_id", f"there is no {kind} job {quoted(request_id)}")])


def _digest(message: Any) -> bytes:
    """Of the request as it was sent; an id that the server made goes into it, and is nobody else's."""
    return hashlib.sha256(type(message).__name__.encode() + message.SerializeToString(deterministic=True)).digest()


def _append(history: History[events_pb2.JobEvent], event: events_pb2.JobEvent) -> None:
    kind = event.WhichOneof("event")
    key = (kind, getattr(getattr(event, kind), "image_index", 0)) if kind in ("preview", "queued", "loading") else None
    history.append(event.sequence, event, event.ByteSize() + EVENT_BYTES, key)


def _was_sent(kept: KeptJob, event: events_pb2.JobEvent) -> bool:
    """Whether an earlier run sent this event, or the picture that it belongs to."""
    if kept.run == 1:
        return False
    return event.HasField("accepted") or picture_of(event) in kept.sent
