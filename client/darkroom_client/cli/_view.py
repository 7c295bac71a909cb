"""What a run of jobs shows and leaves behind: files, progress, JSON lines, the paths at the end."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import typer

from darkroom_client._aio import AsyncClient
from darkroom_client.cli._files import Namer
from darkroom_client.cli._jobs import Job, Listener, run_jobs
from darkroom_client.cli._json_lines import JsonLines
from darkroom_client.cli._keep import PictureKeeper, PreviewKeeper
from darkroom_client.cli._report import complain, warn
from darkroom_client.errors import DarkroomError
from darkroom_client.events import Event

_Keeper: TypeAlias = PictureKeeper | PreviewKeeper


@dataclass(frozen=True, slots=True)
class View:
    """How `generate` presents its jobs."""

    out: str | None
    previews: Path | None  # the folder to keep them in
    preview_mode: str | None  # None: the model's own where anyone looks at previews, and else none
    as_json: bool

    def run(self, client: AsyncClient, jobs: Sequence[Job], images_per_job: int) -> bool:
        """Runs the jobs and prints the paths of what was written; false when one of them failed."""
        pictures = PictureKeeper(Namer(self.out, len(jobs) * images_per_job), images_per_job)
        previews = PreviewKeeper(self.previews, len(jobs), images_per_job) if self.previews is not None else None
        keepers: list[_Keeper] = [pictures] if previews is None else [pictures, previews]
        errors = _Errors()
        with ExitStack() as stack:
            watcher, looked_at = self._watcher(stack, keepers, jobs, images_per_job)
            mode: Any = self.preview_mode or (None if looked_at or previews is not None else "off")
            for job in jobs:
                job.options["preview"] = mode
            succeeded = run_jobs(client, jobs, [*keepers, *watcher, errors])
        self._tell(errors, keepers, several=len(jobs) > 1)
        return succeeded

    def _watcher(
        self, stack: ExitStack, keepers: Sequence[_Keeper], jobs: Sequence[Job], images_per_job: int
    ) -> tuple[list[Listener], bool]:
        """Who shows the events, and whether previews are among what is shown."""
        if self.as_json:
            return [JsonLines([keeper.path_of for keeper in keepers])], True
        from darkroom_client.cli._display import Display, progress_console, shows_pictures

        console = progress_console()
        if console is None:
            return [], False
        pictures = shows_pictures(console) and self.preview_mode != "off"
        return [stack.enter_context(Display(console, jobs, images_per_job, pictures=pictures))], pictures

    def _tell(self, errors: "_Errors", keepers: Sequence[_Keeper], *, several: bool) -> None:
        for text in errors.warnings:
            warn(text)
        for job, error in errors.errors:
            complain(f"{job.title}: {error}" if several else str(error))
        for keeper in keepers if not self.as_json else []:
            for path in keeper.written():
                typer.echo(path)


class _Errors:
    """A listener that keeps the failures and the warnings for the end."""

    def __init__(self) -> None:
        self.errors: list[tuple[Job, DarkroomError]] = []
        self.warnings: list[str] = []

    def on_event(self, job: Job, event: Event) -> None:
        self.warnings += getattr(event, "warnings", ())

    def on_error(self, job: Job, error: DarkroomError) -> None:
        self.errors.append((job, error))
