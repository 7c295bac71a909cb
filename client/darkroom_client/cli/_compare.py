"""`darkroom compare-schedulers`: one picture per scheduler, on a contact sheet."""

from __future__ import annotations

import random
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Annotated

import typer

from darkroom_client._text import unknown
from darkroom_client.cli._groups import with_option_groups
from darkroom_client.cli._options import Conditions, NoClobber, Picture, Sdxl, Server
from darkroom_client.cli._report import print_error
from darkroom_client.cli._words import in_options_words
from darkroom_client.errors import DarkroomError, ModelNotFound, SchedulerNotFound

if TYPE_CHECKING:  # not loaded for --help
    from darkroom_client import catalog
    from darkroom_client._enums import ImageFormatName
    from darkroom_client._sync import Client
    from darkroom_client.cli._files import Output
    from darkroom_client.events import Completed, Image
    from darkroom_client.options import JobOptions


@with_option_groups
def compare_schedulers(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text prompt.")],
    picture: Picture,
    conditions: Conditions,
    sdxl: Sdxl,
    server: Server,
    scheduler: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Scheduler to compare. Default: all. Repeatable.")
    ] = None,
    out: Annotated[
        str, typer.Option(metavar="FILE", help="Contact sheet: .png, .jpg or .webp, or - for stdout.")
    ] = "schedulers.png",
    no_clobber: NoClobber = False,
) -> None:
    """Compare schedulers: one picture of each, from the same seed, on a contact sheet with denoising times.

    Schedulers run one after another, for comparable times.
    Step counts outside a scheduler's range are clamped; labels say so.

    Examples:
    darkroom compare-schedulers "a large yellow star on a black background"
    darkroom compare-schedulers "a star" --scheduler euler --scheduler lcm --steps 8
    """
    from darkroom_client._sync import Client
    from darkroom_client.cli._conditions import conditions as read_conditions
    from darkroom_client.cli._files import Output, format_for

    output, sheet_format = Output(out, automatic="schedulers{suffix}", no_clobber=no_clobber), format_for(out, None)

    options: JobOptions = {**picture.keywords(), **sdxl.keywords(), **read_conditions(conditions, server, None)}
    options["seed"] = random.randrange(2**32) if picture.seed is None else picture.seed
    options["preview"] = "off"
    with Client(**server.keywords()) as client:
        entries = _select(client.schedulers(), scheduler or [])
        steps = picture.steps or _default_steps(client.models(), picture.model)
        results = [_generate(client, prompt, entry, steps, options) for entry in entries]
    _write_sheet(output, sheet_format or "png", [result for result in results if result is not None])
    if None in results:
        raise typer.Exit(1)


def _select(entries: Sequence[catalog.Scheduler], names: Sequence[str]) -> list[catalog.Scheduler]:
    """The schedulers of these names or aliases; all without names.

    :raises SchedulerNotFound: for unknown names.
    """
    by_name = {name: entry for entry in entries for name in (*entry.aliases, entry.name)}
    for name in names:
        if name not in by_name:
            raise SchedulerNotFound(unknown("scheduler", name, [entry.name for entry in entries]))
    return [by_name[name] for name in names] or list(entries)


def _default_steps(models: Sequence[catalog.Model], name: str | None) -> int:
    for model in models:
        if model.name == name or (name is None and model.is_default):
            return model.default_num_inference_steps
    raise ModelNotFound(unknown("model", name or "", [model.name for model in models]))


def _generate(
    client: Client, prompt: str, entry: catalog.Scheduler, requested: int, options: JobOptions
) -> tuple[Image, str] | None:
    """The picture of one scheduler and its label; None after a failure, which is printed."""
    steps = max(entry.min_steps, min(requested, entry.max_steps or requested))
    job: JobOptions = {**options, "scheduler": entry.name, "num_inference_steps": steps}
    stream = client.generate(prompt, **job)
    try:
        image = stream.image()
    except DarkroomError as error:
        print_error(f"{entry.name}: {in_options_words(error)}")
        return None
    label = f"{entry.name}\n{_step_count(steps, requested)}, {_denoise_time(stream.completed)}"
    typer.echo(label.replace("\n", ": "), err=True)
    return image, label


def _step_count(steps: int, requested: int) -> str:
    return f"{steps} steps" if steps == requested else f"{steps} steps (not {requested})"


def _denoise_time(completed: Completed | None) -> str:
    return f"{completed.timings.denoise_seconds:.2f} s" if completed is not None else "?"


def _write_sheet(output: Output, sheet_format: ImageFormatName, results: Sequence[tuple[Image, str]]) -> None:
    from darkroom_client.contact_sheet import Tile, contact_sheet

    if not results:
        return
    buffer = BytesIO()
    contact_sheet([Tile(image.pil, label) for image, label in results]).save(buffer, sheet_format)
    path = output.write(buffer.getvalue(), suffix=f".{sheet_format}".replace("jpeg", "jpg"))
    if path is not None:
        typer.echo(path)
