"""Output of a run of jobs: files, live progress or JSON lines, messages and paths."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeAlias

import typer

from darkroom_client._aio import AsyncClient
from darkroom_client.cli._files import Output, Paths
from darkroom_client.cli._jobs import Job, Listener, run_jobs
from darkroom_client.cli._json_lines import JsonLines
from darkroom_client.cli._options import Results
from darkroom_client.cli._report import print_error, print_warning
from darkroom_client.cli._words import in_options_words
from darkroom_client.cli._writers import ControlMapWriter, PictureWriter, PreviewWriter
from darkroom_client.errors import DarkroomError
from darkroom_client.events import Event

_Writer: TypeAlias = PictureWriter | PreviewWriter | ControlMapWriter


@dataclass(frozen=True, slots=True)
class View:
    """Runs the jobs of `generate` and `edit` with the output that `results` selects."""

    results: Results

    def run(self, client: AsyncClient, jobs: Sequence[Job], images_per_job: int) -> bool:
        """Runs the jobs, prints the paths of the files, and returns whether all jobs succeeded."""
        writers = self._make_writers(len(jobs), images_per_job)
        messages = _Messages()
        with ExitStack() as stack:
            display, shows_previews = self._make_display(stack, writers, jobs, images_per_job)
            # Default mode: the model's if previews are shown or saved, else off.
            needs_previews = shows_previews or self.results.previews is not None
            mode = self.results.preview_mode or (None if needs_previews else "off")
            for job in jobs:
                job.options["preview"] = mode
            succeeded = run_jobs(client, jobs, [*writers, *display, messages])
        self._print(messages, writers, several=len(jobs) > 1)
        return succeeded

    def _make_writers(self, jobs: int, images_per_job: int) -> list[_Writer]:
        output = Output(self.results.out, jobs * images_per_job, no_clobber=self.results.no_clobber)
        paths = Paths(no_clobber=self.results.no_clobber)
        writers: list[_Writer] = [PictureWriter(output, images_per_job)]
        if self.results.previews is not None:
            writers.append(PreviewWriter(self.results.previews, paths, jobs, images_per_job))
        if self.results.echo_maps is not None:
            writers.append(ControlMapWriter(self.results.echo_maps, paths, jobs))
        return writers

    def _make_display(
        self, stack: ExitStack, writers: Sequence[_Writer], jobs: Sequence[Job], images_per_job: int
    ) -> tuple[list[Listener], bool]:
        """The listener for stdout or the terminal, if any, and whether it shows previews."""
        if self.results.as_json:
            return [JsonLines([writer.path_of for writer in writers])], True
        from darkroom_client.cli._display import Display, progress_console, shows_pictures

        console = progress_console()
        if console is None:
            return [], False
        pictures = shows_pictures(console) and self.results.preview_mode != "off"
        return [stack.enter_context(Display(console, jobs, images_per_job, pictures=pictures))], pictures

    def _print(self, messages: "_Messages", writers: Sequence[_Writer], *, several: bool) -> None:
        for text in messages.warnings:
            print_warning(text)
        for job, error in messages.errors:
            text = in_options_words(error)
            print_error(f"{job.title}: {text}" if several else text)
        for writer in writers if not self.results.as_json else []:
            for path in writer.written():
                typer.echo(path, err=self.results.out == "-")


class _Messages:
    """A listener that collects errors and warnings, which are printed after the run."""

    def __init__(self) -> None:
        self.errors: list[tuple[Job, DarkroomError]] = []
        self.warnings: list[str] = []

    def on_event(self, job: Job, event: Event) -> None:
        self.warnings += getattr(event, "warnings", ())

    def on_error(self, job: Job, error: DarkroomError) -> None:
        self.errors.append((job, error))
