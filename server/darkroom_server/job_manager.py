"""The job manager: registry, admission, planning, submission and drain of jobs. For the event loop."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from darkroom_plugins.quoting import quoted
from darkroom_server.errors import DeviceLost, RequestIdInUse, ShuttingDown, SlowReader, to_domain_error
from darkroom_server.jobs.admission import Admission
from darkroom_server.jobs.events import Accepted
from darkroom_server.jobs.job import Job
from darkroom_server.jobs.mailbox import Mailbox

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from darkroom_plugins.errors import DarkroomError
    from darkroom_plugins.request import Request
    from darkroom_server.config.settings import Settings
    from darkroom_server.engine.engine import Engine
    from darkroom_server.jobs.planner import Planner
    from darkroom_server.models.residency import ResidencyManager

BLOCKED_SECONDS = 1.0  # an event that takes longer to write waits for its reader

T = TypeVar("T")


class JobManager:
    """Admits, plans, submits and ends jobs; active jobs are keyed by their token's fingerprint and their id."""

    def __init__(self, engine: Engine, planner: Planner, residency: ResidencyManager, settings: Settings) -> None:
        self._engine = engine
        self._planner = planner
        self._residency = residency
        limits = settings.limits
        self._admission = Admission(limits.max_queued_jobs, limits.queued_jobs_per_client, settings.max_waiting_bytes)
        self._max_unread_bytes = settings.max_unread_bytes
        self._dropped_previews = 0  # of released jobs
        self._jobs: dict[tuple[str, str], Job] = {}  # by token and id
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed: DarkroomError | None = None  # why new jobs are refused

    @property
    def active_jobs(self) -> int:
        """The number of jobs not yet released."""
        return len(self._jobs)

    @property
    def active(self) -> list[Job]:
        """The jobs not yet released, oldest first."""
        return list(self._jobs.values())

    async def idle(self) -> None:
        """Wait until there are no active jobs."""
        await self._idle.wait()

    def counts(self) -> tuple[int, int]:
        """How many active jobs wait for their first turn, and have had it. May be called on another thread."""
        jobs = list(self._jobs.values())
        queued = sum(job.queued for job in jobs)
        return queued, len(jobs) - queued

    def dropped_previews(self) -> int:
        """How many previews newer ones have replaced unread. May be called on another thread."""
        return self._dropped_previews + sum(job.mailbox.dropped_previews for job in list(self._jobs.values()))

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
        the device it uses, if not its token's. One that was `admitted` before the server was started again is not
        refused for a full queue.

        :raises ShuttingDown, RequestIdInUse, QueueFull: it is refused
        """
        if self._closed is not None:
            raise self._closed
        if (token, request_id) in self._jobs:
            raise RequestIdInUse(f"request_id {quoted(request_id)} is in use by another job")
        mailbox = Mailbox(on_picture=self._end_slow_readers)
        job = Job(request_id, token, time.monotonic(), held_bytes=size, mailbox=mailbox)
        job.client, job.priority, job.deadline = client or token, priority, deadline
        self._admission.add(job, always=admitted)
        job.on_start = partial(self._admission.remove, job)
        self._jobs[token, request_id] = job
        self._idle.clear()
        return job

    async def read(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a function that decodes or checks inputs of a request, run off the event loop."""
        return await self._report_device_loss(self._planner.read(function, *arguments))

    async def plan(self, job: Job, request: Request, *, admitted: bool = False) -> None:
        """Plan a registered job.

        :raises DarkroomError: it cannot be planned, or its images exceed the queue's memory limit
        """
        job.plan = await self._report_device_loss(self._planner.plan(request))
        job.held_bytes = job.plan.held_bytes
        if not admitted:
            self._admission.refuse_if_large(job)
        self._admission.resize(job)

    def accept(self, job: Job, *, admitted: bool = False) -> None:
        """Tell a planned job that it is accepted, and when it will begin and be done.

        :raises DeadlineUnreachable, DeadlineTooShort: it will surely not be done in time
        """
        now, found = time.monotonic(), None
        if self._residency.are_resident(job.plan.needs):  # else who knows how long they take to load
            found = self._engine.estimate(job)
        start, end = found or (None, None)
        if not admitted and job.deadline is not None:
            self._admission.refuse_if_late(job, end, self._engine.seconds_alone(job), now)
        self._admission.accepted(start, now)
        job.seen.expect(start, end)
        job.mailbox.put(Accepted(start, end))

    def submit(self, job: Job) -> None:
        """Submit a planned job to the engine once its model and assets are resident. Its events go to its mailbox, the
        last one is `Ended`."""
        job.waiting = asyncio.create_task(self._submit(job))

    async def _submit(self, job: Job) -> None:
        began = time.monotonic()
        try:
            values = await self._residency.acquire(job.plan.needs, job.mailbox.put)
        except Exception as error:
            job.mailbox.close(to_domain_error(error))
            job.waiting = None  # the engine never hears of it
            return
        job.load_seconds = time.monotonic() - began
        job.plan = job.plan.with_assets(values)
        self._engine.submit(job, then=partial(self._residency.release, job.plan.needs))

    def end(self, job: Job, error: DarkroomError) -> bool:
        """End a job at once, even if its stream is blocked by a client that does not read. Returns False if it had
        ended."""
        ended = job.mailbox.close(error)
        self.release(job)
        return ended

    def release(self, job: Job) -> None:
        """Unregister a job whose stream is over, and cancel what is left of it."""
        if job.waiting is not None:
            job.waiting.cancel()
            self._engine.cancel(job)
        key = (job.token, job.request_id)
        if self._jobs.get(key) is job:
            del self._jobs[key]
            self._dropped_previews += job.mailbox.dropped_previews
            self._admission.remove(job)
        if not self._jobs:
            self._idle.set()

    def _end_slow_readers(self) -> None:
        """While finished pictures wait in too much memory, end the job that has the most of those whose clients do not
        read."""
        since = time.monotonic() - BLOCKED_SECONDS
        slow = [job for job in self._jobs.values() if job.writing is not None and job.writing <= since]
        slow.sort(key=lambda job: job.mailbox.unread_bytes)
        while slow and sum(job.mailbox.unread_bytes for job in self._jobs.values()) > self._max_unread_bytes:
            job = slow.pop()
            job.mailbox.drop_unread(SlowReader("the pictures that wait for their readers take too much memory"))
            self.release(job)

    async def drain(self, seconds: float, hurry: asyncio.Event) -> None:
        """Refuse new jobs, wait for the active ones, and end those left after `seconds`, or when `hurry` is set."""
        self._closed = self._closed or ShuttingDown("the server is shutting down")
        waits = [asyncio.ensure_future(event.wait()) for event in (self._idle, hurry)]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        for job in list(self._jobs.values()):
            self.end(job, ShuttingDown("the server stopped before the job was done"))

    def lose(self, error: DarkroomError) -> None:
        """End all jobs with this error, and refuse new ones."""
        self._closed = error
        for job in list(self._jobs.values()):
            self.end(job, error)

    def close(self) -> None:
        """Shut the planner's threads down."""
        self._planner.close()

    async def _report_device_loss(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return await work
        except DeviceLost as error:
            self._engine.lose(error)
            raise
