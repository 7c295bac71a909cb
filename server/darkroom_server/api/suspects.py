"""Which kept job the server ends of, if it ends again and again.

A job that was at work in runs that were cut short is suspected: it may be why, or another of its batch. So it runs
alone, and before each turn of the engine, and each evaluation in it, the log is told of it. A job's work is the same
each time. So it is the cause if such runs, one after the other, were cut short at the same one; what ends the server
from outside comes at any time, also while it starts. Turns alone would not do: the first one after a start takes as
long as many others, as row buckets are proven in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

from darkroom_server.errors import JobLogFull, JobLogUnavailable

if TYPE_CHECKING:
    from darkroom_server.jobs.kept import KeptJob
    from darkroom_server.jobs.log import JobLog
    from darkroom_server.jobs.registry import Registry

BEGUN = 2  # runs, beside the first, that were cut short after a first turn; then the job is suspected
ENDS = 6  # runs alone, one after the other, that were cut short at the same evaluation; then the job is the cause
TURN = 10_000  # evaluations: more than a turn has


def is_cause(kept: KeptJob) -> bool:
    """Whether the server ends of this job."""
    return len(kept.ends) == ENDS and len(set(kept.ends)) == 1


def parsed(ends: str, run: int) -> tuple[int, ...]:
    """The ends of a job as the log has them, after the number of the last such run; none if this run is not the next
    one: another one was cut short before the job was at work."""
    last, _, points = ends.partition(":")
    return tuple(int(point) for point in points.split()) if last == str(run - 1) else ()


class Turns:
    """Tells the log of a job that was begun again how far it is."""

    def __init__(self, kept: KeptJob, job_log: JobLog) -> None:
        self._kept, self._log = kept, job_log
        self._loop = asyncio.get_running_loop()
        self._alone = self._forgiven = False
        self._point = 0  # TURN times its turns, plus the evaluations of the last one

    @asynccontextmanager
    async def told(self, jobs: Registry) -> AsyncIterator[None]:
        """A context to run the job in, up to its end in the log. A suspected one may have to wait before."""
        kept = self._kept
        assert kept.job is not None
        async with AsyncExitStack() as stack:
            if kept.begun >= BEGUN:
                self._alone = await stack.enter_async_context(jobs.alone(kept.job))
            await self._note(-kept.run)  # like no other: planning and loading a model are not the job's fault
            kept.job.before_work = self._before_work
            yield

    async def made(self) -> None:
        """A picture is made, and is to be written."""
        if self._kept.seen.images == len(self._kept.accepted.seeds):  # that is not the job's fault, either
            await self._note(-self._kept.run)

    async def forgive(self) -> None:
        """The run is cut short on purpose, while the engine may be at it still."""
        self._forgiven = True
        await self._write(self._kept.begun, self._kept.ends)

    def _before_work(self, turn: bool) -> None:
        """For the engine's thread, which waits for the log."""
        asyncio.run_coroutine_threadsafe(self._before(turn), self._loop).result()

    async def _before(self, turn: bool) -> None:
        if self._forgiven:
            return
        self._point = (self._point // TURN + 1) * TURN if turn else self._point + 1
        await self._note(self._point)
        if not self._alone and self._kept.job is not None:
            self._kept.job.before_work = None
            await self._write(self._kept.begun + 1, self._kept.ends)

    async def _note(self, point: int) -> None:
        if self._alone:
            await self._write(self._kept.begun, (*self._kept.ends, point)[-ENDS:])

    async def _write(self, begun: int, ends: tuple[int, ...]) -> None:
        assert self._kept.id is not None
        with suppress(JobLogFull, JobLogUnavailable):  # then this run tells nothing
            await self._log.note(self._kept.id, begun, f"{self._kept.run}:{' '.join(map(str, ends))}")
