"""What a run of jobs shows and leaves behind: files, progress, JSON lines, the paths at the end."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeAlias

import typer

from darkroom_client._aio import AsyncClient
from darkroom_client.cli._files import Namer
from darkroom_client.cli._jobs import Job, Listener, run_jobs
from darkroom_client.cli._json_lines import JsonLines
from darkroom_client.cli._options import Results
from darkroom_client.cli._report import complain, warn
from darkroom_client.cli._writers import MapKeeper, PictureKeeper, PreviewKeeper
from darkroom_client.errors import DarkroomError
from darkroom_client.events import Event

_Keeper: TypeAlias = PictureKeeper | PreviewKeeper | MapKeeper


@dataclass(frozen=True, slots=True)
class View:
    """How `generate` and `edit` present their jobs."""

    results: Results

    def run(self, client: AsyncClient, jobs: Sequence[Job], images_per_job: int) -> bool:
        """Runs the jobs and prints the paths of what was written; false when one of them failed."""
        keepers = self._keepers(len(jobs), images_per_job)
        errors = _Errors()
        with ExitStack() as stack:
            watcher, looked_at = self._watcher(stack, keepers, jobs, images_per_job)
            # Without a mode, the model's own where anyone looks at previews, and else none.
            wanted = looked_at or self.results.previews is not None
            mode = self.results.preview_mode or (None if wanted else "off")
            for job in jobs:
                job.options["preview"] = mode
            succeeded = run_jobs(client, jobs, [*keepers, *watcher, errors])
        self._tell(errors, keepers, several=len(jobs) > 1)
        return succeeded

    def _keepers(self, jobs: int, images_per_job: int) -> list[_Keeper]:
        keepers: list[_Keeper] = [PictureKeeper(Namer(self.results.out, jobs * images_per_job), images_per_job)]
        if self.results.previews is not None:
            keepers.append(PreviewKeeper(self.results.previews, jobs, images_per_job))
        if self.results.echo_maps is not None:
            keepers.append(MapKeeper(self.results.echo_maps, jobs))
        return keepers

    def _watcher(
        self, stack: ExitStack, keepers: Sequence[_Keeper], jobs: Sequence[Job], images_per_job: int
    ) -> tuple[list[Listener], bool]:
        """Who shows the events, and whether previews are among what is shown."""
        if self.results.as_json:
            return [JsonLines([keeper.path_of for keeper in keepers])], True
        from darkroom_client.cli._display import Display, progress_console, shows_pictures

        console = progress_console()
        if console is None:
            return [], False
        pictures = shows_pictures(console) and self.results.preview_mode != "off"
        return [stack.enter_context(Display(console, jobs, images_per_job, pictures=pictures))], pictures

    def _tell(self, errors: "_Errors", keepers: Sequence[_Keeper], *, several: bool) -> None:
        for text in errors.warnings:
            warn(text)
        for job, error in errors.errors:
            complain(f"{job.title}: {error}" if several else str(error))
        for keeper in keepers if not self.results.as_json else []:
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
