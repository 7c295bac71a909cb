"""Runs jobs concurrently and passes their events to listeners."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from darkroom_client._aio import AsyncClient
from darkroom_client._stream import AsyncStream
from darkroom_client.errors import DarkroomError
from darkroom_client.events import Event
from darkroom_client.options import JobOptions


@dataclass(frozen=True, slots=True)
class Job:
    """A prompt with its options."""

    index: int  # of the run's jobs, from 0
    prompt: str | None  # None: the prompt of `options["parameters"]`
    options: JobOptions
    title: str  # for messages and file names
    edit_options: Mapping[str, Any] | None = None  # keywords of `edit` alone, picture included; None: `generate`
    watched: str | None = None  # request id of a kept job to watch; None: start a new one
    line: int | None = None  # of stdin that the prompt stands in, from 1; None: an argument

    def start(self, client: AsyncClient) -> AsyncStream:
        """Starts the job on the server, or attaches to it."""
        if self.watched is not None:
            return client.watch(self.watched)
        if self.edit_options is None:
            return client.generate(self.prompt, **self.options)
        return client.edit(prompt=self.prompt, **self.edit_options, **self.options)


class Listener(Protocol):
    """An observer of the jobs."""

    def on_event(self, job: Job, event: Event) -> None:
        """Called for every event of every job."""

    def on_error(self, job: Job, error: DarkroomError) -> None:
        """Called once for a failed job."""


def run_jobs(client: AsyncClient, jobs: Sequence[Job], listeners: Sequence[Listener], at_once: int) -> bool:
    """Runs the jobs and returns whether all succeeded. An interrupt (Ctrl-C) cancels them on the server.

    :param at_once: jobs that the server has at a time; the others wait here, in their order.
    """
    return asyncio.run(_run_all(client, jobs, listeners, at_once))


async def _run_all(client: AsyncClient, jobs: Sequence[Job], listeners: Sequence[Listener], at_once: int) -> bool:
    slots = asyncio.Semaphore(at_once)
    try:
        async with client, asyncio.TaskGroup() as group:
            tasks = [group.create_task(_run(client, job, listeners, slots)) for job in jobs]
    except BaseExceptionGroup as group_error:
        raise group_error.exceptions[0] from None  # the first, which cancelled the other jobs
    return all(task.result() for task in tasks)


async def _run(client: AsyncClient, job: Job, listeners: Sequence[Listener], slots: asyncio.Semaphore) -> bool:
    try:
        async with slots, job.start(client) as stream:
            async for event in stream:
                for listener in listeners:
                    listener.on_event(job, event)
    except DarkroomError as error:
        for listener in listeners:
            listener.on_error(job, error)
        return False
    return True
