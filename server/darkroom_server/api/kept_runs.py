"""Runs of kept jobs, without their clients: what they send goes into their histories, and into the log."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from darkroom.v1 import events_pb2
from darkroom_plugins.errors import DarkroomError, JobFailed
from darkroom_server.api.status import outcome_of, serialized
from darkroom_server.api.stored_events import BYTES, picture_of, resolved, to_log
from darkroom_server.api.suspects import Turns
from darkroom_server.errors import (
    DeadlineExceeded,
    DeviceLost,
    JobLogFull,
    JobLogUnavailable,
    ShuttingDown,
)
from darkroom_server.jobs.log_store import DONE, JobTakenUp, LoggedJob

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from darkroom_server.api.backend import Backend
    from darkroom_server.jobs.history import History
    from darkroom_server.jobs.job import Job
    from darkroom_server.jobs.kept import KeptJob, KeptJobs
    from darkroom_server.jobs.log import JobLog

log = logging.getLogger(__name__)

SMALL = 64 * 1024  # bytes of a message that is worked on on the event loop
EVENT_BYTES = 256  # of an event in memory, beside its message's
CLOSE_SECONDS = 5.0
INTERRUPTED = (ShuttingDown, DeviceLost, JobLogFull, JobLogUnavailable)  # not the job's own end: it is run again


class KeptRuns:
    """The kept jobs of a server that run here. For the event loop's thread."""

    def __init__(self, backend: Backend, kept: KeptJobs, log: JobLog | None, on_end: Callable[[], None]) -> None:
        self._backend, self._kept, self._log, self._on_end = backend, kept, log, on_end
        self._running: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Write what is left to write. To be called when no job runs any more."""
        if self._running:
            await asyncio.wait(self._running, timeout=CLOSE_SECONDS)

    def start(self, kept: KeptJob, rpc: str, message: Any, refusal: DarkroomError | None = None) -> None:
        """Run a job whose `job` is registered in the present context, by which it has its token's limits; if it is
        refused, it ends with that."""
        task = asyncio.create_task(self._run(kept, rpc, message, refusal))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, kept: KeptJob, rpc: str, message: Any, refusal: DarkroomError | None) -> None:
        """Run a job to its end, whatever happens to its watchers."""
        job = kept.job
        assert job is not None
        timer = self._end_at(job, kept.deadline)
        turns = Turns(kept, self._log) if kept.run > 1 and refusal is None and self._log is not None else None
        async with turns.told(self._backend.jobs) if turns is not None else nullcontext():
            error, last = await self._do(kept, job, rpc, message, refusal, turns)
            if timer is not None:
                timer.cancel()
            job.failure = job.failure or error
            self._backend.jobs.release(job)
            if turns is not None and isinstance(error, ShuttingDown):
                await turns.forgive()
            await self._end(kept, error, last)

    async def _do(
        self, kept: KeptJob, job: Job, rpc: str, message: Any, refusal: DarkroomError | None, turns: Turns | None
    ) -> tuple[DarkroomError | None, list[events_pb2.JobEvent]]:
        """How a job ended, and its last messages."""
        last = list[events_pb2.JobEvent]()
        try:
            if refusal is not None:
                raise refusal
            async with aclosing(self._backend.events(job, rpc, message, admitted=kept.run > 1)) as events:
                async for made in events:
                    if turns is not None and made[0].HasField("image"):
                        await turns.made()
                    last += await self._take(kept, rpc, message, made)
        except DarkroomError as failure:
            return failure.with_traceback(None), last
        except Exception:
            log.exception("the kept job %s failed", kept.request_id)
            return JobFailed("the server failed; its log says more"), last
        return None, last

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
        ones, which the log gets together with the job's end, and watchers see after that."""
        assert kept.job is not None
        made = [each for each in made if not _was_sent(kept, each)]
        kinds = {each.WhichOneof("event") for each in made}
        if "completed" in kinds or (kinds & BYTES.keys() and kept.job.mailbox.at_end):
            return made
        if "accepted" in kinds:
            await self._accept(kept, rpc, message, made[0])
        elif kinds & BYTES.keys():
            await self._write(kept, made)
        assert kept.history is not None
        for each in made:
            append(kept.history, each)
        return []

    async def _accept(self, kept: KeptJob, rpc: str, message: Any, accepted: events_pb2.JobEvent) -> None:
        if self._log is not None:
            request = await unless_small(self._backend.jobs.read, message, resolved, message, accepted.accepted)
            logged = LoggedJob(
                kept.owner, kept.request_id, rpc, kept.digest, request, kept.created, deadline=kept.deadline
            )
            kept.id = await self._log.add(logged, to_log([accepted]))
            kept.logged.add(accepted.sequence)
        kept.accepted = accepted.accepted

    async def _write(self, kept: KeptJob, made: list[events_pb2.JobEvent]) -> None:
        """Write pictures to the log, with all before them. While that fails, the job goes on in memory.

        :raises JobTakenUp: another server does the job again
        """
        if self._log is None or kept.id is None:
            return
        events = [*self._left(kept), *made]
        try:
            await self._log.append(kept.id, to_log(events))
            kept.logged.update(each.sequence for each in events)
        except JobTakenUp:
            raise
        except DarkroomError as error:
            log.error("pictures of the kept job %s are not in the log yet: %s", kept.request_id, error)

    async def _end(self, kept: KeptJob, error: DarkroomError | None, last: list[events_pb2.JobEvent]) -> None:
        history = kept.history
        assert history is not None
        if isinstance(error, JobTakenUp):
            kept.job = None  # its watchers see what the other server writes to the log
            return
        if kept.accepted is None or (isinstance(error, INTERRUPTED) and kept.id is not None):
            self._kept.remove(kept)
            history.end(error)
            return
        ended = time.time()
        try:
            stored = await self._finish(kept, ended, error, last)
        except JobTakenUp:
            kept.job = None
            return
        for each in last:
            append(history, each)
        kept.ended, kept.error, kept.job = ended, error, None
        history.end(error)
        self._kept.end(kept)
        if stored:
            self._drop_history(kept)
        self._on_end()

    async def finish_again(self) -> None:
        """Write the ends of jobs that could not be written when they came: else a restart does these jobs again."""
        for kept in self._kept:
            if kept.ended is None or kept.history is None or kept.id is None:
                continue
            with suppress(JobTakenUp):  # which watchers here need not know: they have seen the end
                if await self._finish(kept, kept.ended, kept.error, []):
                    self._drop_history(kept)

    def _drop_history(self, kept: KeptJob) -> None:
        """The log has all of it."""
        assert kept.history is not None
        kept.stored_bytes, kept.request_bytes, kept.history = kept.history.size, 0, None
        self._kept.end(kept)

    def _left(self, kept: KeptJob) -> list[events_pb2.JobEvent]:
        """What of the history is not in the log yet."""
        assert kept.history is not None
        return [each for each in kept.history if each.sequence not in kept.logged]

    async def _finish(
        self, kept: KeptJob, ended: float, error: DarkroomError | None, last: list[events_pb2.JobEvent]
    ) -> bool:
        """Write a job's end, and all that was not written before; whether the log has it.

        :raises JobTakenUp: another server does the job again
        """
        if self._log is None or kept.id is None:
            return False
        left = self._left(kept)
        outcome, status = (DONE, b"") if error is None else (outcome_of(error), serialized(error))
        try:
            await self._log.finish(kept.id, kept.seen.started, ended, outcome, status, to_log([*left, *last]))
        except JobTakenUp:
            raise
        except DarkroomError as failure:
            log.error("the end of the kept job %s is not in the log: %s", kept.request_id, failure)
            return False
        return True


async def unless_small(read: Callable[..., Any], message: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function of a message, by `read` if that is not small."""
    return function(*arguments) if message.ByteSize() <= SMALL else await read(function, *arguments)


async def quietly(write: Coroutine[Any, Any, None]) -> None:
    """A write to the log that may fail: what it forgets is deleted by the next start."""
    with suppress(JobLogFull, JobLogUnavailable):
        await write


def append(history: History[events_pb2.JobEvent], event: events_pb2.JobEvent) -> None:
    """Add an event to a job's history."""
    kind = event.WhichOneof("event")
    key = (kind, getattr(getattr(event, kind), "image_index", 0)) if kind in ("preview", "queued", "loading") else None
    history.append(event.sequence, event, event.ByteSize() + EVENT_BYTES, key)


def _was_sent(kept: KeptJob, event: events_pb2.JobEvent) -> bool:
    """Whether an earlier run sent this event, or the picture that it belongs to."""
    if kept.run == 1:
        return False
    return event.HasField("accepted") or picture_of(event) in kept.sent
