"""Live progress in the terminal: progress bars, and the newest previews."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from darkroom_client._text import shortened
from darkroom_client.cli._halfblocks import HalfBlocks
from darkroom_client.cli._jobs import Job
from darkroom_client.cli._steps import StepCount
from darkroom_client.errors import DarkroomError
from darkroom_client.events import Accepted, Completed, Event, Image, Loading, Preview, Queued, Step

_MAX_COLUMNS, _MAX_ROWS = 48, 24  # character cells of a picture
_MAX_TITLE = 32  # characters
_MAX_PICTURES = 8  # side by side


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
    """A listener that shows the jobs while its context is entered: of one job a bar, of several one for all steps, and
    below it one for each job that waits or runs at the server."""

    def __init__(self, console: Console, jobs: Sequence[Job], images_per_job: int, *, pictures: bool) -> None:
        self._console = console
        self._shows_pictures = pictures
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[state]}", style="dim"),
            console=console,
        )
        self._steps = StepCount(len(jobs), images_per_job)
        title = _title(jobs[0]) if len(jobs) == 1 else f"all {len(jobs)}"
        self._overall = self._add(title)
        # Of several jobs, by job, in the order of the prompts; those at the server are visible.
        self._bars = [self._add(_title(job), visible=False) for job in jobs] if len(jobs) > 1 else []
        self._waiting: set[int] = set()  # jobs behind others
        self._ended = {True: 0, False: 0}  # jobs, by whether they succeeded
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
        self._waiting.discard(job.index)
        state = ""
        match event:
            case Accepted():
                self._steps.accept(job.index, event.step_count)
            case Queued():
                self._waiting.add(job.index)
                state = _waiting(event)
            case Loading():
                state = _loading(event)
            case Step():
                self._steps.step(job.index, event.image_index, event.step)
            case Preview() | Image():
                self._show(job, event)
            case Completed():
                self._end(job, succeeded=True)
                return
        self._update(job, state)

    def on_error(self, job: Job, error: DarkroomError) -> None:
        self._steps.give_up(job.index)
        self._end(job, succeeded=False)

    def _end(self, job: Job, *, succeeded: bool) -> None:
        self._ended[succeeded] += 1
        self._waiting.discard(job.index)
        if self._bars:
            self._progress.update(self._bars[job.index], visible=False)
        state = "done" if succeeded else "failed"
        self._set(self._overall, self._steps.done, self._steps.total, self._state() if self._bars else state)

    def _update(self, job: Job, state: str) -> None:
        if self._bars:
            self._progress.start_task(self._bars[job.index])
            self._set(self._bars[job.index], *self._steps.of(job.index), state)
            state = self._state()
        self._set(self._overall, self._steps.done, self._steps.total, state)

    def _add(self, title: str, *, visible: bool = True) -> TaskID:
        return self._progress.add_task(title, start=visible, total=None, state="", visible=visible)

    def _set(self, bar: TaskID, done: int, total: int | None, state: str) -> None:
        self._progress.update(bar, completed=done, total=total, state=state, visible=True)

    def _state(self) -> str:
        """For instance "12 done, 1 failed, 3 waiting"."""
        counts = {"done": self._ended[True], "failed": self._ended[False], "waiting": len(self._waiting)}
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count)

    def _show(self, job: Job, event: Preview | Image) -> None:
        if not self._shows_pictures or event.image_index != 0:
            return
        slots = min(self._steps.jobs, _MAX_PICTURES)
        columns = min(_MAX_COLUMNS, max(8, self._console.width // slots - 2))
        rows = min(_MAX_ROWS, max(4, self._console.height - slots - 4))
        self._pictures[job.index] = HalfBlocks(event.pil, columns, rows)
        if len(self._pictures) > slots:
            del self._pictures[min(self._pictures)]

    def _renderable(self) -> RenderableType:
        pictures = [picture for _, picture in sorted(self._pictures.items())]  # at one go: `_live` has its own thread
        return Group(Columns(pictures, padding=(0, 2)), self._progress) if pictures else self._progress


def _title(job: Job) -> str:
    return escape(shortened(job.title, _MAX_TITLE))


def _waiting(event: Queued) -> str:
    """For instance "waiting behind 3, done in about 12 s"."""
    place, end = f"waiting behind {event.position}" if event.position else "next", event.estimated_end_seconds
    return place + (f", done in about {end:.0f} s" if end is not None else "")


def _loading(event: Loading) -> str:
    share = f" {event.bytes_done / event.bytes_total:.0%}" if event.bytes_total else ""
    return f"loading {event.component or event.model}{share}"
