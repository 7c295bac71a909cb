"""Kept jobs: runs them without their clients, writes them to the log, and takes them up again after a restart."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from contextlib import suppress
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

from google.rpc.status_pb2 import Status

from darkroom.v1 import events_pb2, image_service_pb2
from darkroom_plugins.errors import DarkroomError, Violation
from darkroom_plugins.quoting import quoted
from darkroom_server.api import quotas
from darkroom_server.api.access import call_as, caller_of
from darkroom_server.api.kept_runs import KeptRuns, append, quietly, unless_small
from darkroom_server.api.status import error_of
from darkroom_server.api.stored_events import BYTES, from_log, picture_of
from darkroom_server.api.suspects import is_cause, parsed
from darkroom_server.errors import (
    Cancelled,
    GivenUp,
    NotFound,
    RequestIdInUse,
    Unauthenticated,
)
from darkroom_server.jobs.history import History
from darkroom_server.jobs.job import Seen
from darkroom_server.jobs.kept import KeptJob, KeptJobs
from darkroom_server.jobs.log import JobLog
from darkroom_server.jobs.log_sqlite import SqliteStore
from darkroom_server.jobs.log_store import DONE, JobTakenUp, LoggedJob

if TYPE_CHECKING:
    from collections.abc import Iterable

    from darkroom_server.api.backend import Backend
    from darkroom_server.config.settings import Settings
    from darkroom_server.jobs.job import Job
    from darkroom_server.jobs.numbers import CallNumbers

log = logging.getLogger(__name__)

REQUESTS: dict[str, Any] = {"Generate": image_service_pb2.GenerateRequest, "Edit": image_service_pb2.EditRequest}
RUN_SEQUENCES = 2**32  # sequences of one run; those of the next are greater
SWEEP_SECONDS = 60.0
LOOK_SECONDS = 1.0  # between looks at what other servers have written to the log


class Keeper:
    """The kept jobs of a server. For the event loop's thread."""

    def __init__(self, backend: Backend, settings: Settings, numbers: CallNumbers) -> None:
        self._backend = backend
        self._tokens, self._numbers = settings.tokens, numbers
        self._kept = KeptJobs(settings.keep_results_seconds, settings.max_kept_bytes)
        self._log = _log_of(settings)
        self._runs = KeptRuns(backend, self._kept, self._log, self._trim)
        self._caring: list[asyncio.Task[None]] = []
        self._looking = asyncio.Lock()  # what looks say is taken in in its order
        self._unread: list[LoggedJob] = []  # jobs of the last look: they are taken in with the next

    @property
    def jobs(self) -> list[KeptJob]:
        """All kept jobs, oldest first. May be called on another thread."""
        return list(self._kept)

    @property
    def keep_seconds(self) -> float:
        """How long a job is kept after its end."""
        return self._kept.keep_seconds

    async def open(self) -> None:
        """Read the log, and begin its unfinished jobs again.

        :raises StateDirInUse: another server has it
        """
        if self._log is not None:
            await self._take_in(await self._log.open())
        self._trim()
        self._caring = [asyncio.create_task(self._sweep()), asyncio.create_task(self._keep_looking())]

    async def close(self) -> None:
        """Write what is left to write. To be called when no job runs any more."""
        for task in self._caring:
            task.cancel()
        await self._runs.close()
        if self._log is not None:
            await asyncio.to_thread(self._log.close)

    def find(self, owner: str, request_id: str) -> KeptJob | None:
        """The kept job of this owner and id."""
        return self._kept.find(owner, request_id)

    async def found(self, owner: str, request_id: str) -> KeptJob | None:
        """The same, which may be another server's that has the same log, and new there.

        :raises JobLogUnavailable: it is not here, and who knows
        """
        if self.find(owner, request_id) is None:
            await self.look()
        return self.find(owner, request_id)

    async def cancel(self, kept: KeptJob) -> bool:
        """Have another server end a kept job that it has; False if it has ended."""
        if not kept.elsewhere:
            return False
        assert self._log is not None
        assert kept.id is not None
        await self._log.cancel(kept.id)
        return True

    async def attach(self, rpc: str, message: Any, job_of: Any, owner: str, seconds: float | None) -> KeptJob:
        """The kept job of a request: the one that there is, else a new one, which is run.

        :param job_of: registers a job for a message
        :param seconds: until the job's deadline
        :raises RequestIdInUse: the id is that of another request
        :raises DarkroomError: no job can be kept now
        """
        digest = await unless_small(self._backend.jobs.read, message, _digest, message)
        kept = await self.found(owner, message.request_id)
        if kept is None:
            return self._begin(rpc, message, job_of, digest, seconds)
        if kept.digest != digest:
            raise RequestIdInUse(f"request_id {quoted(message.request_id)} is that of a kept job of another request")
        return kept

    async def history(self, kept: KeptJob) -> History[events_pb2.JobEvent]:
        """What a kept job has sent, and goes on to send.

        :raises NotFound: its pictures are gone from the disk, or are damaged
        """
        async with self._looking:
            if kept.elsewhere and kept.history is None:
                history: History[events_pb2.JobEvent] = History()
                await self._read_on(kept, history)
                kept.history = history
        if kept.history is not None:
            return kept.history
        assert self._log is not None
        assert kept.id is not None
        stored, whole = await self._log.events(kept.id)
        if not stored or not whole:
            self._kept.remove(kept)
            await self._log.forget([kept.id])
            raise no_such_job(kept.request_id)
        history = History()
        for event in from_log(stored):
            append(history, event)
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
        self._runs.start(kept, rpc, message)
        return kept

    async def look(self) -> None:
        """See what other servers have written to the log, if it is shared.

        :raises JobLogUnavailable: it cannot be used now
        """
        if self._log is not None and self._log.shared:  # whoever asked may go, and in whose name is not for other jobs
            await asyncio.shield(asyncio.create_task(self._look(self._log), context=Context()))

    async def _look(self, job_log: JobLog) -> None:
        async with self._looking:
            begun = {
                kept.id: kept.seen.started
                for kept in self._kept
                if kept.job is not None and kept.id is not None and kept.seen.started is not None
            }
            changed = await job_log.look(begun, take=not self._backend.jobs.closed)
            known = {each.id for each in changed}
            await self._take_in([*(each for each in self._unread if each.id not in known), *changed])

    async def _keep_looking(self) -> None:
        blind = False
        while self._log is not None and self._log.shared:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
                blind = False
            except DarkroomError as error:
                if not blind:
                    log.error("kept jobs of other servers are not seen: %s", error)
                blind = True

    async def _take_in(self, changed: Iterable[LoggedJob]) -> None:
        self._unread = []
        for logged in changed:
            try:
                await self._take_in_one(logged)
            except DarkroomError as error:
                log.error("the kept job %s cannot be read: %s", logged.request_id, error)
                self._unread.append(logged)

    async def _take_in_one(self, logged: LoggedJob) -> None:
        """Take in a job of the log that is new or has changed."""
        assert self._log is not None
        kept = self._kept.find(logged.owner, logged.request_id)
        if kept is not None and kept.job is None and kept.id != logged.id:  # another server has forgotten that one
            self._drop(kept)
            kept = None
        if kept is None or kept.elsewhere:
            await self._restore(kept, logged)
        elif kept.job is not None and kept.id == logged.id and logged.server != self._log.server:
            self._backend.jobs.end(kept.job, JobTakenUp())
            self._unread.append(logged)  # until it has ended here
        elif kept.job is not None and kept.id == logged.id and logged.cancelled:
            self._backend.jobs.end(kept.job, Cancelled("the job was cancelled"))

    async def _restore(self, kept: KeptJob | None, logged: LoggedJob) -> None:
        """Keep a job of the log as it is there now, and run it if it is to be run here."""
        assert self._log is not None
        first, size = await self._log.first_event(logged.id)
        kept = kept or KeptJob(
            logged.owner,
            logged.request_id,
            logged.digest,
            logged.created,
            0,
            Seen(),
            history=None,
            accepted=events_pb2.JobEvent.FromString(first).accepted,
            deadline=logged.deadline,
            id=logged.id,
        )
        kept.run, kept.begun, kept.ends = logged.runs, logged.begun, parsed(logged.ends, logged.runs)
        kept.stored_bytes, kept.seen.started = size, logged.started
        if logged.taken and not self._backend.jobs.closed:
            await self._begin_again(kept, logged)
        elif kept.history is not None:
            await self._read_on(kept, kept.history, kept.history.last)
        if logged.ended is not None:
            kept.ended = logged.ended
            if logged.outcome != DONE:
                kept.error = error_of(Status.FromString(logged.status))
            else:
                kept.seen.images, kept.seen.step = len(kept.accepted.seeds), kept.accepted.step_count
            if kept.history is not None:
                kept.history.end(kept.error)
                kept.history = None
        self._kept.restore(kept)

    async def _begin_again(self, kept: KeptJob, logged: LoggedJob) -> None:
        history = kept.history or History()
        for event in await self._read_on(kept, history):
            kept.logged.add(event.sequence)
            if event.WhichOneof("event") in BYTES:
                kept.sent.add(picture_of(event))
        message = REQUESTS[logged.rpc].FromString(logged.request)
        job = self._backend.jobs.register(kept.owner, kept.request_id, len(logged.request), admitted=True)
        job.priority = quotas.PRIORITIES.get(message.priority, "normal")
        job.created, job.base = kept.created, (kept.run - 1) * RUN_SEQUENCES
        kept.job, kept.seen, kept.history, kept.request_bytes = job, job.seen, history, len(logged.request)
        context, refusal = copy_context(), self._refusal(kept, logged)
        try:
            context.run(call_as, caller_of(kept.owner, self._tokens, self._numbers))
        except Unauthenticated as error:
            refusal = refusal or error
        context.run(self._runs.start, kept, logged.rpc, message, refusal)

    def _refusal(self, kept: KeptJob, logged: LoggedJob) -> DarkroomError | None:
        """Why a job is not begun again, if it is not."""
        if logged.cancelled:
            return Cancelled("the job was cancelled")
        if is_cause(kept):
            return GivenUp("the server ended again and again in the same step of this job, which it did alone")
        return None

    async def _read_on(
        self, kept: KeptJob, history: History[events_pb2.JobEvent], after: int = 0
    ) -> list[events_pb2.JobEvent]:
        """Add to the history what the log has of a job; the events that the log has after this sequence."""
        assert self._log is not None
        assert kept.id is not None
        stored = list(from_log((await self._log.events(kept.id, after))[0]))
        for event in stored:
            if event.sequence > history.last:
                append(history, event)
        return stored

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(SWEEP_SECONDS, max(0.1, self._kept.keep_seconds / 4)))
            self._trim()
            await self._runs.finish_again()
            with suppress(DarkroomError):  # looks say so
                await self._end_forgotten()

    async def _end_forgotten(self) -> None:
        """End other servers' jobs that the log has no longer: they ended, and were forgotten, between two looks."""
        elsewhere = {kept.id: kept for kept in self._kept if kept.elsewhere and kept.id is not None}
        if not elsewhere or self._log is None:
            return
        known = await self._log.known(elsewhere)
        for kept in (each for id, each in elsewhere.items() if id not in known):
            self._drop(kept)

    def _drop(self, kept: KeptJob) -> None:
        self._kept.remove(kept)
        if kept.history is not None:
            kept.history.end(no_such_job(kept.request_id))

    def _trim(self) -> None:
        """Forget what need not be kept any more."""
        gone = [kept.id for kept in self._kept.trim() if kept.id is not None]
        if gone:
            assert self._log is not None
            self._forgetting = asyncio.ensure_future(quietly(self._log.forget(gone)))


def _log_of(settings: Settings) -> JobLog | None:
    if settings.job_log is not None:
        from darkroom_server.jobs.log_postgres import PostgresStore

        return JobLog(PostgresStore(settings.job_log))
    return JobLog(SqliteStore(settings.state_dir)) if settings.state_dir is not None else None


def no_such_job(request_id: str, kind: str = "kept") -> NotFound:
    """That there is no job of this id."""
    return NotFound("request", [Violation("request_id", f"there is no {kind} job {quoted(request_id)}")])


def _digest(message: Any) -> bytes:
    """Of the request as it was sent; an id that the server made goes into it, and is nobody else's."""
    return hashlib.sha256(type(message).__name__.encode() + message.SerializeToString(deterministic=True)).digest()
