"""`darkroom generate` and `darkroom edit`. What they do is in `_job_options`, which `--help` need not load."""

from pathlib import Path
from typing import Annotated

import typer

from darkroom_client.cli._groups import grouped
from darkroom_client.cli._options import Conditions, Editing, Picture, Results, Scheduling, Sdxl, Server, Source

_Prompts = Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="Each is a job of its own.")]


@grouped
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
    """Makes pictures from text, shows them as they develop, and prints the paths of the files written."""
    from darkroom_client.cli._job_options import Order

    Order(server, source, results, picture, sdxl, scheduling, conditions).generate(prompts or [])


@grouped
def edit(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The picture to change.")],
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
    """Changes a picture: under a --mask, beyond its edges by --outpaint, or as a whole."""
    from darkroom_client.cli._job_options import Order

    Order(server, source, results, picture, sdxl, scheduling, conditions).edit(image, prompts or [], editing)
