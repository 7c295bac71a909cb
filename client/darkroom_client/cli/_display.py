"""Live progress in the terminal: a progress bar and the newest preview of each job."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from darkroom_client.cli._halfblocks import HalfBlocks
from darkroom_client.cli._jobs import Job
from darkroom_client.errors import DarkroomError
from darkroom_client.events import Accepted, Completed, Event, Image, Loading, Preview, Queued, Step

_MAX_COLUMNS, _MAX_ROWS = 48, 24  # character cells of a picture
_MAX_TITLE = 32  # characters


def progress_console() -> Console | None:
    """The console for progress: stdout if it is a terminal, else stderr, else None."""
    for console in (Console(), Console(stderr=True)):
        if console.is_terminal and not console.is_dumb_terminal:
            return console
    return None


def shows_pictures(console: Console | None) -> bool:
    """Whether the console can show pictures: stdout, with colours."""
    return console is not None and not console.stderr and console.color_system is not None and not console.no_color


class Display:
    """A listener that shows the jobs while its context is entered."""

    def __init__(self, console: Console, jobs: Sequence[Job], images_per_job: int, *, pictures: bool) -> None:
        self._console = console
        self._shows_pictures = pictures
        self._images_per_job = images_per_job
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[state]}", style="dim"),
            console=console,
        )
        self._tasks = [self._progress.add_task(_title(job), total=None, state="") for job in jobs]
        self._pictures: dict[int, HalfBlocks] = {}  # the newest by job
        self._live = Live(console=console, get_renderable=self._renderable, refresh_per_second=8)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def on_event(self, job: Job, event: Event) -> None:
        task = self._tasks[job.index]
        match event:
            case Accepted():
                self._progress.update(task, total=event.step_count * self._images_per_job, state="")
            case Queued():
                self._progress.update(task, state=_waiting(event))
            case Loading():
                self._progress.update(task, state=_loading(event))
            case Step():
                self._progress.update(task, advance=1, state="")
            case Preview() | Image():
                self._show(job, event)
            case Completed():
                self._progress.update(task, state="done")

    def on_error(self, job: Job, error: DarkroomError) -> None:
        self._progress.update(self._tasks[job.index], state="failed")

    def _show(self, job: Job, event: Preview | Image) -> None:
        if not self._shows_pictures or event.image_index != 0:
            return
        columns = min(_MAX_COLUMNS, max(8, self._console.width // len(self._tasks) - 2))
        rows = min(_MAX_ROWS, max(4, self._console.height - len(self._tasks) - 3))
        self._pictures[job.index] = HalfBlocks(event.pil, columns, rows)

    def _renderable(self) -> RenderableType:
        pictures = [self._pictures[index] for index in sorted(self._pictures)]
        return Group(Columns(pictures, padding=(0, 2)), self._progress) if pictures else self._progress


def _title(job: Job) -> str:
    return escape(job.title if len(job.title) <= _MAX_TITLE else job.title[: _MAX_TITLE - 1] + "…")


def _waiting(event: Queued) -> str:
    """For instance "waiting behind 3, done in about 12 s"."""
    end = event.estimated_end_seconds
    return f"waiting behind {event.position}" + (f", done in about {end:.0f} s" if end is not None else "")


def _loading(event: Loading) -> str:
    share = f" {event.bytes_done / event.bytes_total:.0%}" if event.bytes_total else ""
    return f"loading {event.component or event.model}{share}"
