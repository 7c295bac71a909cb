"""`darkroom compare-schedulers`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from darkroom_client.cli._groups import grouped
from darkroom_client.cli._options import Conditions, Picture, Sdxl, Server
from darkroom_client.cli._report import complain
from darkroom_client.errors import DarkroomError, ModelNotFound, SchedulerNotFound

if TYPE_CHECKING:  # `--help` need not load them
    from darkroom.v1 import catalog_service_pb2 as catalog
    from darkroom_client._sync import Client
    from darkroom_client.events import Completed, Image
    from darkroom_client.options import JobOptions


@grouped
def compare_schedulers(
    prompt: Annotated[str, typer.Argument(help="What to make.")],
    picture: Picture,
    conditions: Conditions,
    sdxl: Sdxl,
    server: Server,
    scheduler: Annotated[list[str] | None, typer.Option(help="One to compare; may be repeated. Default: all.")] = None,
    out: Annotated[Path, typer.Option(help="The contact sheet's file.")] = Path("schedulers.png"),
) -> None:
    """Makes the same picture, of one seed, under each scheduler: one labelled contact sheet, with times.

    One after another, so that the times (of the denoising) can be compared. Steps that a scheduler does not take are
    brought into its range, and its label says so.
    """
    from darkroom_client._sync import Client
    from darkroom_client.cli._conditions import conditions as read_conditions

    options: JobOptions = {**picture.keywords(), **sdxl.keywords(), **read_conditions(conditions, server, None)}
    options["seed"] = random.randrange(2**32) if picture.seed is None else picture.seed
    options["preview"] = "off"
    with Client(**server.keywords()) as client:
        wanted = _wanted(client.schedulers(), scheduler or [])
        asked = picture.steps or _default_steps(client.models(), picture.model)
        made = [_make(client, prompt, entry, asked, options) for entry in wanted]
    _save(out, [each for each in made if each is not None])
    if None in made:
        raise typer.Exit(1)


def _wanted(entries: Sequence[catalog.Scheduler], names: Sequence[str]) -> list[catalog.Scheduler]:
    """The entries of the schedulers named, or all of them.

    :raises SchedulerNotFound: when a name is not known.
    """
    by_name = {name: entry for entry in entries for name in (*entry.aliases, entry.name)}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise SchedulerNotFound(f"the server has no scheduler {', '.join(unknown)}; it has {', '.join(by_name)}")
    return [by_name[name] for name in names] or list(entries)


def _default_steps(models: Sequence[catalog.Model], name: str | None) -> int:
    for model in models:
        if model.name == name or (name is None and model.is_default):
            return model.default_num_inference_steps
    raise ModelNotFound(f"the server has no model {name}; it has {', '.join(model.name for model in models)}")


def _make(
    client: Client, prompt: str, entry: catalog.Scheduler, asked: int, options: JobOptions
) -> tuple[Image, str] | None:
    """The picture under one scheduler and its label; None when it failed, which is told at once."""
    steps = max(entry.min_steps, min(asked, entry.max_steps or asked))
    chosen: JobOptions = {**options, "scheduler": entry.name, "num_inference_steps": steps}
    stream = client.generate(prompt, **chosen)
    try:
        image = stream.image()
    except DarkroomError as error:
        complain(f"{entry.name}: {error}")
        return None
    label = f"{entry.name}\n{_count(steps, asked)}, {_seconds(stream.completed)}"
    typer.echo(label.replace("\n", ": "), err=True)
    return image, label


def _count(steps: int, asked: int) -> str:
    return f"{steps} steps" if steps == asked else f"{steps} steps (not {asked})"


def _seconds(completed: Completed | None) -> str:
    return f"{completed.timings.denoise_seconds:.2f} s" if completed is not None else "?"


def _save(out: Path, made: Sequence[tuple[Image, str]]) -> None:
    from darkroom_client.contact_sheet import Tile, contact_sheet

    if not made:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet([Tile(image.image, label) for image, label in made]).save(out)
    typer.echo(out)
