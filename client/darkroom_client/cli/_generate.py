"""`darkroom generate` and `darkroom edit`. Their work is in `_job_options`, which `--help` does not load."""

from pathlib import Path
from typing import Annotated

import typer

from darkroom_client.cli._groups import with_option_groups
from darkroom_client.cli._options import Conditions, Picture, Scheduling, Sdxl, Server, Source
from darkroom_client.cli._run_options import Editing, Prompting, Results, SecondStage

_Prompts = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PROMPT",
        help="Text prompt; each one is a job. -: one a line of stdin; those that begin with # are skipped.",
    ),
]


@with_option_groups
def generate(
    picture: Picture,
    scheduling: Scheduling,
    conditions: Conditions,
    sdxl: Sdxl,
    second_stage: SecondStage,
    results: Results,
    prompting: Prompting,
    source: Source,
    server: Server,
    prompts: _Prompts = None,
) -> None:
    """Generate pictures from text, with a live preview, and print the paths of the files written.

    Examples:
    darkroom generate "a red circle on a blue background"
    darkroom generate "a green star" "a red heart" --num-images 4 --out pictures/
    darkroom generate "a green star" --seed 7 --steps 30 --scheduler dpmpp-2m
    darkroom generate --from star.png --seed 8 --out other.png
    darkroom generate "a star" --control canny=photo.png:0.7 --lora outline:0.5
    darkroom generate "a green star" --out - | magick - -resize 400% star.jpg
    darkroom generate - --out pictures/ < prompts.txt
    darkroom generate --combinations "a {red|blue} circle on a {green|white} background" --seed 7
    darkroom generate "a green star" --animate star.webp --open
    darkroom generate "a green star" --hires-fix 1.5 --hires-strength 0.2
    """
    from darkroom_client.cli._job_options import JobRunner

    JobRunner(server, source, results, prompting, picture, sdxl, scheduling, conditions).generate(
        prompts or [], second_stage
    )


@with_option_groups
def edit(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Picture to edit, or - for stdin.")],
    editing: Editing,
    picture: Picture,
    scheduling: Scheduling,
    conditions: Conditions,
    sdxl: Sdxl,
    results: Results,
    prompting: Prompting,
    source: Source,
    server: Server,
    prompts: _Prompts = None,
) -> None:
    """Edit a picture: inpainting with --mask, outpainting with --outpaint, else image to image.

    Examples:
    darkroom edit photo.png "a watercolour" --strength 0.5
    darkroom edit photo.png "a red hat" --mask mask.png --keep-unmasked
    darkroom edit photo.png "a wide beach" --outpaint 64,0,64,0
    darkroom generate "a red star" --out - | darkroom edit - "a blue star"
    darkroom edit photo.png "a watercolour" --animate watercolour.gif
    """
    from darkroom_client.cli._job_options import JobRunner

    JobRunner(server, source, results, prompting, picture, sdxl, scheduling, conditions).edit(
        image, prompts or [], editing
    )
