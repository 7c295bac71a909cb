"""`darkroom generate` and `darkroom edit`. Their work is in `_job_options`, which `--help` does not load."""

from pathlib import Path
from typing import Annotated

import typer

from darkroom_client.cli._groups import with_option_groups
from darkroom_client.cli._options import Conditions, Editing, Picture, Results, Scheduling, Sdxl, Server, Source

_Prompts = Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="Text prompt; each one is a job.")]


@with_option_groups
def generate(
    picture: Picture,
    scheduling: Scheduling,
    conditions: Conditions,
    sdxl: Sdxl,
    results: Results,
    source: Source,
    server: Server,
    prompts: _Prompts = None,
) -> None:
    """Generate pictures from text, with a live preview, and print the paths of the files written."""
    from darkroom_client.cli._job_options import JobRunner

    JobRunner(server, source, results, picture, sdxl, scheduling, conditions).generate(prompts or [])


@with_option_groups
def edit(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Picture to edit.")],
    editing: Editing,
    picture: Picture,
    scheduling: Scheduling,
    conditions: Conditions,
    sdxl: Sdxl,
    results: Results,
    source: Source,
    server: Server,
    prompts: _Prompts = None,
) -> None:
    """Edit a picture: inpainting with --mask, outpainting with --outpaint, else image to image."""
    from darkroom_client.cli._job_options import JobRunner

    JobRunner(server, source, results, picture, sdxl, scheduling, conditions).edit(image, prompts or [], editing)
