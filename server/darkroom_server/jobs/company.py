"""Which jobs are at work: any number together, or one that is to be alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from darkroom_server.jobs.job import Job


class _Waiting(NamedTuple):
    alone: bool
    let_in: asyncio.Future[None]


class Company:
    """For the event loop's thread."""

    def __init__(self) -> None:
        self._at_work: set[Job] = set()  # beside others
        self._alone: Job | None = None
        self._waiting: dict[Job, _Waiting] = {}

    async def enter(self, job: Job) -> None:
        """Returns when a job may go to work, or has left: at once while there is none that is to be alone."""
        if self._alone is not job:
            await self._wait(job, alone=False)

    def leave(self, job: Job) -> None:
        """A job is at work no longer, or no longer waits. Idempotent."""
        if (waiting := self._waiting.pop(job, None)) is not None and not waiting.let_in.done():
            waiting.let_in.set_result(None)
        self._at_work.discard(job)
        self._let_in()

    @asynccontextmanager
    async def without_others(self, job: Job) -> AsyncIterator[None]:
        """A context in which no other job is at work, unless this one has left: begun when those are done that are."""
        try:
            await self._wait(job, alone=True)
            yield
        finally:
            if self._alone is job:
                self._alone = None
            self.leave(job)

    async def _wait(self, job: Job, *, alone: bool) -> None:
        waiting = self._waiting[job] = _Waiting(alone, asyncio.get_running_loop().create_future())
        self._let_in()
        await waiting.let_in

    def _let_in(self) -> None:
        if self._alone is not None:
            return
        first = next((job for job, waiting in self._waiting.items() if waiting.alone), None)
        if first is not None and self._at_work:
            return
        self._alone = first
        for job in list(self._waiting) if first is None else [first]:
            if first is None:
                self._at_work.add(job)
            if not (let_in := self._waiting.pop(job).let_in).done():
                let_in.set_result(None)
