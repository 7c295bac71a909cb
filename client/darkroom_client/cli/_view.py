"""Output of a run of jobs: files, live progress or JSON lines, messages, paths, a viewer."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import typer

from darkroom_client._aio import AsyncClient
from darkroom_client._text import shortened
from darkroom_client.animation import FORMATS
from darkroom_client.cli._animations import AnimationWriter
from darkroom_client.cli._files import Namer, Output, Paths
from darkroom_client.cli._jobs import Job, Listener, run_jobs
from darkroom_client.cli._json import print_line
from darkroom_client.cli._json_lines import JsonLines
from darkroom_client.cli._report import print_error, print_warning
from darkroom_client.cli._run_options import AT_ONCE, Results
from darkroom_client.cli._values import usage_error
from darkroom_client.cli._viewer import open_pictures
from darkroom_client.cli._words import in_options_words
from darkroom_client.cli._writers import ControlMapWriter, PictureWriter, PreviewWriter
from darkroom_client.errors import DarkroomError
from darkroom_client.events import Completed, Event

_Writer: TypeAlias = PictureWriter | PreviewWriter | ControlMapWriter


@dataclass(frozen=True, slots=True)
class View:
    """Runs the jobs of `generate` and `edit` with the output that `results` selects."""

    results: Results
    at_once: int = AT_ONCE  # jobs that the server has at a time

    def check(self) -> None:
        """Refuses results that exclude each other.

        :raises typer.BadParameter: if some do.
        """
        out, animate = self.results.out, self.results.animate
        if out == "-" and self.results.as_json:
            usage_error("--json", "cannot be combined with --out -, as both write to stdout")
        if out == "-" and self.results.open_pictures:
            usage_error("--open", "cannot be combined with --out -, which writes no file")
        if animate is None:
            return
        if Path(animate).suffix.lower() not in FORMATS:
            usage_error("--animate", f"{animate} must end in {', '.join(FORMATS)}")
        if animate == out:
            usage_error("--animate", "must be another file than that of --out")
        if self.results.preview_mode == "off":
            usage_error("--animate", "needs previews: it cannot be combined with --preview off or --no-preview")

    def run(self, client: AsyncClient, jobs: Sequence[Job], images_per_job: int) -> bool:
        """Runs the jobs, prints the paths of the files, and returns whether all jobs succeeded."""
        writers = self._make_writers(len(jobs), images_per_job)
        animations = self._make_animations(len(jobs) * images_per_job, images_per_job)
        messages = _Messages()
        try:
            with ExitStack() as stack:
                if animations is not None:
                    stack.enter_context(animations)
                display, shows_previews = self._make_display(stack, writers, jobs, images_per_job)
                # Default mode: the model's if previews are shown or saved, else off.
                needs_previews = shows_previews or self.results.previews is not None or animations is not None
                mode = self.results.preview_mode or (None if needs_previews else "off")
                for job in jobs:
                    job.options["preview"] = mode
                listeners = [*writers, *([animations] if animations is not None else []), *display, messages]
                succeeded = run_jobs(client, jobs, listeners, self.at_once)
        except KeyboardInterrupt:
            self._print(messages, writers, None, several=len(jobs) > 1)  # what is done is done
            for request_id in messages.running if self.results.keep or jobs[0].watched else ():
                typer.secho(f"goes on: `darkroom watch {request_id}`", fg=typer.colors.YELLOW, err=True)
            raise
        self._print(messages, writers, animations, several=len(jobs) > 1)
        if self.results.open_pictures:
            open_pictures(writers[0].written())
        return succeeded

    def _make_animations(self, total: int, images_per_job: int) -> AnimationWriter | None:
        if self.results.animate is None:
            return None
        namer = Namer(self.results.animate, total, no_clobber=self.results.no_clobber, option="--animate")
        return AnimationWriter(namer, images_per_job)

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

    def _print(
        self,
        messages: "_Messages",
        writers: Sequence[_Writer],
        animations: AnimationWriter | None,
        *,
        several: bool,
    ) -> None:
        for text in messages.warnings:
            print_warning(text)
        for title in animations.still if animations is not None else []:
            print_warning(
                f"--animate: no previews of {shortened(title)} came; --preview MODE chooses how they are made"
            )
        for job, error in messages.errors:
            print_error(_place(job, several=several) + in_options_words(error))
        for path in [path for writer in writers for path in writer.written()] if not self.results.as_json else []:
            typer.echo(path, err=self.results.out == "-")
        for (job_index, image_index), path in animations.written().items() if animations is not None else ():
            if self.results.as_json:
                print_line({"event": "animation", "job": job_index, "image_index": image_index, "path": str(path)})
            else:
                typer.echo(path, err=self.results.out == "-")


def _place(job: Job, *, several: bool) -> str:
    """Which job a message is of: its line of stdin, and its prompt if there are several jobs; else nothing."""
    return (f"line {job.line}: " if job.line is not None else "") + (f"{shortened(job.title)}: " if several else "")


class _Messages:
    """A listener that collects errors and warnings, which are printed after the run, and which jobs run."""

    def __init__(self) -> None:
        self.errors: list[tuple[Job, DarkroomError]] = []
        self.warnings: list[str] = []
        self.running: dict[str, Job] = {}  # by request id

    def on_event(self, job: Job, event: Event) -> None:
        self.warnings += getattr(event, "warnings", ())
        self.running[event.request_id] = job
        if isinstance(event, Completed):
            del self.running[event.request_id]

    def on_error(self, job: Job, error: DarkroomError) -> None:
        self.errors.append((job, error))
        self.running = {request_id: each for request_id, each in self.running.items() if each is not job}
