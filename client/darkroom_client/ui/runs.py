"""Jobs of one click, followed together: one of several pictures, or one a scheduler."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from darkroom_client import events
from darkroom_client._aio import AsyncClient
from darkroom_client._stream import AsyncStream
from darkroom_client.errors import Cancelled, DarkroomError

_PAUSE = 0.05  # seconds between two changes: a browser that is behind would be shown them one by one, ever later


@dataclass(slots=True)
class Cell:
    """A picture in the making."""

    step: int = 0
    step_count: int = 0
    eta_seconds: float | None = None
    preview: events.Preview | None = None
    image: events.Image | None = None


@dataclass(slots=True)
class Job:
    """A job as far as its events have told."""

    request_id: str
    label: str = ""  # of its pictures, as the scheduler that is compared
    cells: list[Cell] = field(default_factory=lambda: [Cell()])
    accepted: events.Accepted | None = None
    waiting: events.Queued | events.Loading | None = None  # None: its turn has come, or nothing is known
    maps: list[events.ControlImage] = field(default_factory=list)
    completed: events.Completed | None = None
    error: DarkroomError | None = None
    unwanted: bool = False  # to be cancelled as soon as the server knows it

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self.completed is not None or self.error is not None

    def take(self, event: events.Event) -> None:
        """Notes an event."""
        match event:
            case events.Accepted():
                self.accepted = event
                self.cells = [Cell(step_count=event.step_count) for _ in event.seeds]
            case events.Queued() | events.Loading():
                self.waiting = event
            case events.ControlImage():
                self.maps.append(event)
            case events.Step():
                self.waiting, cell = None, self.cells[event.image_index]
                cell.step, cell.step_count, cell.eta_seconds = event.step, event.step_count, event.eta_seconds
            case events.Preview():
                self.cells[event.image_index].preview = event
            case events.Image():
                self.cells[event.image_index].image = event
            case events.Completed():
                self.completed = event


@dataclass(slots=True)
class Run:
    """The jobs of one click."""

    jobs: list[Job]

    @property
    def cells(self) -> list[tuple[Job, Cell]]:
        """All pictures, each with its job."""
        return [(job, cell) for job in self.jobs for cell in job.cells]

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return all(job.ended for job in self.jobs)

    @property
    def progress(self) -> float:
        """The share of the steps that is done, from 0 to 1."""
        steps = sum(cell.step for _, cell in self.cells)
        return steps / max(1, sum(cell.step_count for _, cell in self.cells))

    @property
    def images(self) -> list[tuple[Job, events.Image]]:
        """The finished pictures."""
        return [(job, cell.image) for job, cell in self.cells if cell.image is not None]

    def to_json(self) -> list[dict[str, str]]:
        """What a browser has to remember to find it again."""
        return [{"id": job.request_id, "label": job.label} for job in self.jobs]

    @classmethod
    def from_json(cls, stored: Sequence[dict[str, Any]]) -> "Run":
        """From what a browser has remembered."""
        return cls([Job(str(each["id"]), str(each.get("label", ""))) for each in stored])


async def follow(run: Run, streams: Sequence[AsyncStream]) -> AsyncIterator[None]:
    """Yields when something has changed, up to 20 times a second, until all jobs have ended. Leaving it leaves the jobs
    running.

    :param streams: of the run's jobs.
    """
    changed = asyncio.Event()
    readers = [asyncio.create_task(_read(job, stream, changed)) for job, stream in zip(run.jobs, streams, strict=True)]
    try:
        ended = False
        while not ended:
            await changed.wait()
            changed.clear()
            ended = run.ended  # before the reader takes its time
            yield
            if not ended:
                await asyncio.sleep(_PAUSE)
    finally:
        for reader in readers:
            reader.cancel()


async def _read(job: Job, stream: AsyncStream, changed: asyncio.Event) -> None:
    try:
        async for event in stream:
            job.take(event)
            changed.set()
            if job.unwanted and not job.ended:
                await stream.cancel()
    except DarkroomError as error:
        job.error = error
    changed.set()


async def cancel(client: AsyncClient, run: Run) -> None:
    """Stops the jobs that have not ended. Their streams then end by themselves.

    :raises DarkroomError: if the server cannot be told.
    """
    for job in run.jobs:
        if job.accepted is None:
            job.unwanted = True
        elif not job.ended:
            await client.cancel(job.request_id)


def was_stopped(run: Run) -> bool:
    """Whether somebody cancelled a part of it."""
    return any(isinstance(job.error, Cancelled) for job in run.jobs)
