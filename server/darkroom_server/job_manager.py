"""The job manager: the registry of active jobs, from their registration to their release. For the event loop."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from darkroom_server.errors import DeviceLost, QueueFull, RequestIdInUse, ShuttingDown, to_domain_error
from darkroom_server.jobs.job import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from darkroom_plugins.errors import DarkroomError
    from darkroom_plugins.request import Request
    from darkroom_server.config.settings import Settings
    from darkroom_server.engine.engine import Engine
    from darkroom_server.jobs.planner import Planner
    from darkroom_server.models.residency import ResidencyManager

T = TypeVar("T")


class JobManager:
    """Admits, plans and submits jobs, keeps them by token and id, and ends them."""

    def __init__(self, engine: Engine, planner: Planner, residency: ResidencyManager, settings: Settings) -> None:
        self._engine = engine
        self._planner = planner
        self._residency = residency
        self._max_queued_jobs = settings.limits.max_queued_jobs
        self._max_waiting_bytes = settings.max_waiting_bytes
        self._jobs: dict[tuple[str, str], Job] = {}  # by token and id
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed: DarkroomError | None = None  # why new jobs are refused

    @property
    def active_jobs(self) -> int:
        """How many jobs have not ended."""
        return len(self._jobs)

    async def idle(self) -> None:
        """Return when there are no active jobs."""
        await self._idle.wait()

    def find(self, token: str, request_id: str) -> Job | None:
        """The active job of this id, of this token."""
        return self._jobs.get((token, request_id))

    def register(self, token: str, request_id: str, size: int) -> Job:
        """Take a job in, or refuse it before any work; `size` is that of its message, in bytes.

        :raises ShuttingDown, RequestIdInUse, QueueFull: it is refused
        """
        if self._closed is not None:
            raise self._closed
        if (token, request_id) in self._jobs:
            raise RequestIdInUse(f"request_id {request_id!r} is in use by an active job")
        job = Job(request_id, token, arrived=time.monotonic(), held_bytes=size)
        self._refuse_if_full(besides=job)
        self._jobs[token, request_id] = job
        self._idle.clear()
        return job

    async def read(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a function that decodes or checks what came with a request, run beside the event loop."""
        return await self._minding_the_device(self._planner.read(function, *arguments))

    async def plan(self, job: Job, request: Request) -> None:
        """Plan a registered job.

        :raises DarkroomError: it cannot be done, or there is no room for its pictures in the queue
        """
        job.plan = await self._minding_the_device(self._planner.plan(request))
        job.held_bytes = job.plan.held_bytes
        self._refuse_if_full(besides=job)

    def submit(self, job: Job) -> None:
        """Give a planned job to the engine, as soon as its model, and what goes with it, is there. Its mailbox gets its
        events, the last one `Ended`."""
        job.waiting = asyncio.create_task(self._submit(job))

    async def _submit(self, job: Job) -> None:
        began = time.monotonic()
        try:
            values = await self._residency.acquire(job.plan.needs, job.mailbox.put)
        except Exception as error:
            job.mailbox.close(to_domain_error(error))
            return
        job.acquired, job.load_seconds = job.plan.needs, time.monotonic() - began
        job.plan = job.plan.with_assets(values)
        self._engine.submit(job)

    def end(self, job: Job, error: DarkroomError) -> bool:
        """End a job from outside, at once, even if its stream hangs in a client that does not read; false when it has
        ended already."""
        ended = job.mailbox.close(error)
        self.release(job)
        return ended

    def release(self, job: Job) -> None:
        """However its stream ended: the job does not go on without it."""
        if job.waiting is not None:
            job.waiting.cancel()
        self._engine.cancel(job, then=partial(self._free, job))
        key = (job.token, job.request_id)
        if self._jobs.get(key) is job:
            del self._jobs[key]
        if not self._jobs:
            self._idle.set()

    async def drain(self, seconds: float) -> None:
        """Refuse new jobs, and wait for those that run, at most so long."""
        self._closed = self._closed or ShuttingDown("the server is shutting down")
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            for job in list(self._jobs.values()):
                self.end(job, ShuttingDown("the server stopped before the job was done"))

    def lose(self, error: DarkroomError) -> None:
        """End every job with this error, and take no more."""
        self._closed = error
        for job in list(self._jobs.values()):
            self.end(job, error)

    def close(self) -> None:
        """Let go of the planner's threads."""
        self._planner.close()

    async def _minding_the_device(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return await work
        except DeviceLost as error:
            self._engine.lose(error)
            raise

    def _refuse_if_full(self, besides: Job) -> None:
        """:raises QueueFull: too many others wait, or there is no room for this one's pictures beside theirs"""
        waiting = [other for other in self._jobs.values() if other.queued and other is not besides]
        if len(waiting) >= self._max_queued_jobs:
            raise QueueFull(f"{len(waiting)} jobs are waiting already")
        held = sum(other.held_bytes for other in waiting)
        if waiting and held + besides.held_bytes > self._max_waiting_bytes:
            raise QueueFull(f"the pictures of the jobs that wait take {held // 2**20} MiB already")

    def _free(self, job: Job) -> None:
        """On the event loop, when the engine has let go of a job."""
        keys, job.acquired = job.acquired, ()
        if keys:
            self._residency.release(keys)
