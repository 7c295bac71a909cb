"""Runs jobs side by side and tells listeners what happens to them."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from darkroom_client._aio import AsyncClient
from darkroom_client._stream import AsyncStream
from darkroom_client.errors import DarkroomError
from darkroom_client.events import Event
from darkroom_client.options import JobOptions

_AT_ONCE = 16  # jobs; more would only fill the server's queue


@dataclass(frozen=True, slots=True)
class Job:
    """A prompt with what to make of it."""

    index: int  # its place among the run's jobs, from 0
    prompt: str | None  # None: that of the options' `parameters`
    options: JobOptions
    title: str  # the prompt, for people
    change: Mapping[str, Any] | None = None  # of an edit: the keywords that only `edit` has, the picture among them

    def start(self, client: AsyncClient) -> AsyncStream:
        """Begins it on the server."""
        if self.change is None:
            return client.generate(self.prompt, **self.options)
        return client.edit(prompt=self.prompt, **self.change, **self.options)


class Listener(Protocol):
    """Someone who follows the jobs."""

    def on_event(self, job: Job, event: Event) -> None:
        """Called for each event of each job."""

    def on_error(self, job: Job, error: DarkroomError) -> None:
        """Called when a job fails."""


def run_jobs(client: AsyncClient, jobs: Sequence[Job], listeners: Sequence[Listener]) -> bool:
    """Runs the jobs and returns whether all of them succeeded; an interrupt cancels them on the server."""
    return asyncio.run(_all(client, jobs, listeners))


async def _all(client: AsyncClient, jobs: Sequence[Job], listeners: Sequence[Listener]) -> bool:
    room = asyncio.Semaphore(_AT_ONCE)
    try:
        async with client, asyncio.TaskGroup() as group:
            tasks = [group.create_task(_one(client, job, listeners, room)) for job in jobs]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None  # the first one cancelled the others
    return all(task.result() for task in tasks)


async def _one(client: AsyncClient, job: Job, listeners: Sequence[Listener], room: asyncio.Semaphore) -> bool:
    try:
        async with room, job.start(client) as stream:
            async for event in stream:
                for listener in listeners:
                    listener.on_event(job, event)
    except DarkroomError as error:
        for listener in listeners:
            listener.on_error(job, error)
        return False
    return True
