"""The job manager: admission, planning and submission of jobs. For the event loop."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from darkroom_server.errors import DeviceLost, to_domain_error
from darkroom_server.jobs.company import Company
from darkroom_server.jobs.events import Accepted
from darkroom_server.jobs.registry import Registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from typing import Any

    from darkroom_plugins.request import Request
    from darkroom_server.config.settings import Settings
    from darkroom_server.engine.engine import Engine
    from darkroom_server.jobs.job import Job
    from darkroom_server.jobs.planner import Planner
    from darkroom_server.models.residency import ResidencyManager

T = TypeVar("T")


class JobManager(Registry):
    """Admits, plans, submits and ends jobs."""

    def __init__(self, engine: Engine, planner: Planner, residency: ResidencyManager, settings: Settings) -> None:
        super().__init__(settings)
        self._engine = engine
        self._planner = planner
        self._residency = residency
        self._company = Company()

    async def read(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await self._report_device_loss(self._planner.read(function, *arguments))

    @asynccontextmanager
    async def alone(self, job: Job) -> AsyncIterator[bool]:
        async with self._company.without_others(job):
            yield True

    async def plan(self, job: Job, request: Request, *, admitted: bool = False) -> None:
        """Plan a registered job.

        :raises DarkroomError: it cannot be planned, or its images exceed the queue's memory limit
        """
        job.plan = await self._report_device_loss(self._planner.plan(request))
        job.held_bytes = job.plan.held_bytes
        if not admitted:
            self.admission.refuse_if_large(job)
        self.admission.resize(job)

    def accept(self, job: Job, *, admitted: bool = False) -> None:
        """Tell a planned job that it is accepted, and when it will begin and be done.

        :raises DeadlineUnreachable, DeadlineTooShort: it will surely not be done in time
        """
        now, found = time.monotonic(), None
        if self._residency.are_resident(job.plan.needs):  # else who knows how long they take to load
            found = self._engine.estimate(job)
        start, end = found or (None, None)
        if not admitted and job.deadline is not None:
            self.admission.refuse_if_late(job, end, self._engine.seconds_alone(job), now)
        self.admission.accepted(start, now)
        job.seen.expect(start, end)
        job.mailbox.put(Accepted(start, end))

    def submit(self, job: Job) -> None:
        """Submit a planned job to the engine once its model and assets are resident. Its events go to its mailbox, the
        last one is `Ended`."""
        job.waiting = asyncio.create_task(self._submit(job))

    async def _submit(self, job: Job) -> None:
        began = time.monotonic()
        try:
            await self._company.enter(job)
            values = await self._residency.acquire(job.plan.needs, job.mailbox.put)
        except Exception as error:
            failure, job.load_seconds = to_domain_error(error), time.monotonic() - began
            job.mailbox.close(failure)
            self._engine.cancel(job, failure)
            job.waiting = None  # the engine never has it
            return
        job.load_seconds = time.monotonic() - began
        job.plan = job.plan.with_assets(values)
        self._engine.submit(job, then=partial(self._leave, job))

    def _leave(self, job: Job) -> None:
        self._residency.release(job.plan.needs)
        self._company.leave(job)

    def release(self, job: Job) -> None:
        if job.waiting is not None:
            self._engine.cancel(job, job.break_off)
        if job.waiting is None or not job.waiting.done():  # else the engine has it for a while
            self._company.leave(job)
        super().release(job)

    def close(self) -> None:
        """Shut the planner's threads down."""
        self._planner.close()

    async def _report_device_loss(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return await work
        except DeviceLost as error:
            self._engine.lose(error)
            raise
