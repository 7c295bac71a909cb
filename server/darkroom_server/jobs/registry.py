"""The registry of active jobs: who has which, and until when new ones are taken."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from darkroom_plugins.quoting import quoted
from darkroom_server.errors import RequestIdInUse, ShuttingDown, SlowReader
from darkroom_server.jobs.admission import Admission
from darkroom_server.jobs.job import Job
from darkroom_server.jobs.mailbox import Mailbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from typing import Any

    from darkroom_plugins.errors import DarkroomError
    from darkroom_server.config.settings import Settings

FINISH_SECONDS = 0.5  # for pictures that are being encoded and written when the server stops
BLOCKED_SECONDS = 1.0  # an event that takes longer to write waits for its reader


class Registry(ABC):
    """The jobs not yet released, by their token's fingerprint and their id. For the event loop's thread."""

    def __init__(self, settings: Settings) -> None:
        limits = settings.limits
        self.admission = Admission(limits.max_queued_jobs, limits.queued_jobs_per_client, settings.max_waiting_bytes)
        self._max_unread_bytes = settings.max_unread_bytes
        self._dropped_previews = 0  # of released jobs
        self._jobs: dict[tuple[str, str], Job] = {}  # by token and id
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed: DarkroomError | None = None  # why new jobs are refused
        self._finishing: list[tuple[Job, DarkroomError]] = []  # done when they were to be ended with these errors

    @property
    def active_jobs(self) -> int:
        """The number of jobs not yet released."""
        return len(self._jobs)

    @property
    def closed(self) -> bool:
        """Whether new jobs are refused for good."""
        return self._closed is not None

    @property
    def active(self) -> list[Job]:
        """The jobs not yet released, oldest first. May be called on another thread."""
        return list(self._jobs.values())

    def counts(self) -> tuple[int, int]:
        """How many active jobs wait for their first turn, and have had it. May be called on another thread."""
        jobs = self.active
        queued = sum(job.queued for job in jobs)
        return queued, len(jobs) - queued

    def longest_wait(self) -> float:
        """Seconds until all jobs that wait now will have begun, as far as has been estimated."""
        starts = [job.seen.estimated_start for job in self.active if job.queued and job.seen.estimated_start]
        return max(0.0, max(starts) - time.time()) if starts else 0.0

    def dropped_previews(self) -> int:
        """How many previews newer ones have replaced unread. May be called on another thread."""
        return self._dropped_previews + sum(job.mailbox.dropped_previews for job in self.active)

    async def idle(self) -> None:
        """Wait until there are no active jobs."""
        await self._idle.wait()

    def of_token(self, token: str) -> list[Job]:
        """The active jobs of this token."""
        return [job for job in self._jobs.values() if job.token == token]

    def find(self, token: str, request_id: str) -> Job | None:
        """The active job of this token's fingerprint and id."""
        return self._jobs.get((token, request_id))

    def register(
        self,
        token: str,
        request_id: str,
        size: int,
        *,
        client: str = "",
        priority: str = "normal",
        deadline: float | None = None,
        admitted: bool = False,
    ) -> Job:
        """Admit a job, or refuse it before any work. `size` is its message's, in bytes; `client` says whose share of
        the device it uses, if not its token's; `deadline` is by `time.monotonic`. One that was `admitted` before the
        server was started again is not refused for a full queue.

        :raises ShuttingDown, RequestIdInUse, QueueFull: it is refused
        """
        if self._closed is not None:
            raise self._closed
        if (token, request_id) in self._jobs:
            raise RequestIdInUse(f"request_id {quoted(request_id)} is in use by another job")
        job = Job(request_id, token, time.monotonic(), held_bytes=size, mailbox=Mailbox(self._end_slow_readers))
        job.client, job.priority, job.deadline = client or token, priority, deadline
        self._admit(job, always=admitted)
        self._jobs[token, request_id] = job
        self._idle.clear()
        return job

    @abstractmethod
    async def read(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a function that decodes or checks inputs of a request, run off the event loop."""

    @asynccontextmanager
    async def alone(self, job: Job) -> AsyncIterator[bool]:
        """A context in which no other job is at work, begun when that is so. False: jobs are not done here."""
        yield False

    def end(self, job: Job, error: DarkroomError) -> bool:
        """End a job at once, even if its stream is blocked by a client that does not read. Returns False if it had
        ended."""
        ended = job.mailbox.close(error)
        if ended:
            job.failure = job.failure or error
        self.release(job)
        return ended

    def release(self, job: Job) -> None:
        """Unregister a job whose stream is over, and cancel what is left of it."""
        self.admission.remove(job)
        if job.waiting is not None:
            job.waiting.cancel()
        if self.find(job.token, job.request_id) is job:
            self._dropped_previews += job.mailbox.dropped_previews
            del self._jobs[job.token, job.request_id]
        if not self._jobs:
            self._idle.set()

    async def drain(self, seconds: float, hurry: asyncio.Event) -> None:
        """Refuse new jobs, wait for the active ones, and end those left after `seconds`, or when `hurry` is set. Those
        that are done have `FINISH_SECONDS` more: a plugin may hang over their pictures."""
        self._closed = self._closed or ShuttingDown("the server is shutting down")
        waits = [asyncio.ensure_future(event.wait()) for event in (self._idle, hurry)]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        self._end_all(ShuttingDown("the server stopped before the job was done"))
        if self._finishing:
            await asyncio.sleep(FINISH_SECONDS)
        for job, error in self._finishing:
            job.mailbox.drop_unread(error)

    def lose(self, error: DarkroomError) -> None:
        """End all jobs with this error, and refuse new ones."""
        self._closed = error
        self._end_all(error)

    def _end_all(self, error: DarkroomError) -> None:
        self._finishing += [(job, error) for job in self.active if not self.end(job, error)]

    def _end_slow_readers(self) -> None:
        """While finished pictures wait in too much memory, end the job that has the most of those whose clients do not
        read."""
        since = time.monotonic() - BLOCKED_SECONDS
        slow = [job for job in self._jobs.values() if job.writing is not None and job.writing <= since]
        slow.sort(key=lambda job: job.mailbox.unread_bytes)
        while slow and sum(job.mailbox.unread_bytes for job in self._jobs.values()) > self._max_unread_bytes:
            job = slow.pop()
            job.failure = SlowReader("the pictures that wait for their readers take too much memory")
            job.mailbox.drop_unread(job.failure)
            self.release(job)

    def _admit(self, job: Job, *, always: bool) -> None:
        """Let a new job in, `always` if it has been before. :raises QueueFull: not now"""
        self.admission.add(job, always=always)
        job.on_start = self.admission.remove
