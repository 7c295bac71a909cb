"""What `darkroom generate` and `darkroom edit` do with their options."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from google.protobuf import json_format

from darkroom.v1 import parameters_pb2
from darkroom_client._aio import AsyncClient
from darkroom_client.cli import _recipes
from darkroom_client.cli._conditions import conditions
from darkroom_client.cli._files import format_for
from darkroom_client.cli._jobs import Job
from darkroom_client.cli._options import Conditions, Editing, Picture, Results, Scheduling, Sdxl, Server, Source
from darkroom_client.cli._values import by_key, margins, picture, wrong
from darkroom_client.cli._view import View
from darkroom_client.options import JobOptions, SchedulerSpec
from darkroom_client.recipes import Recipe


class Order:
    """What the options that `generate` and `edit` share ask for."""

    def __init__(
        self,
        server: Server,
        source: Source,
        results: Results,
        picture: Picture,
        sdxl: Sdxl,
        scheduling: Scheduling,
        given: Conditions,
    ) -> None:
        self._server = server
        self._source = source
        self._recipe = _recipes.read(source)
        self._old = self._recipe.parameters if self._recipe is not None else parameters_pb2.Parameters()
        self._view = View(results)
        self._options: JobOptions = {
            **picture.keywords(),
            **sdxl.keywords(),
            **conditions(given, server, self._recipe, echo_maps=results.echo_maps is not None),
            "parameters": self._recipe,
            "scheduler": _scheduler(scheduling, self._recipe),
            "eta": scheduling.eta,
            "num_images": results.num_images,
            "deterministic": results.deterministic,
            "output": format_for(results.out, results.image_format),
        }

    def generate(self, prompts: Sequence[str]) -> None:
        """Makes pictures from text.

        :raises typer.Exit: when a job failed.
        """
        if self._recipe is not None:
            _recipes.check_generate(self._recipe, self._source, self._options["task"])
        elif not prompts:
            wrong("PROMPT", "give at least one prompt, or a picture by --from")
        self._run(prompts, None, "")

    def edit(self, image: Path, prompts: Sequence[str], editing: Editing) -> None:
        """Changes a picture.

        :raises typer.Exit: when a job failed.
        """
        change = self._change(editing) | {"image": picture(image, "IMAGE")}
        if self._recipe is not None:
            _recipes.fit_edit(self._recipe, self._source, change, self._options["task"])
        if editing.resize_mode and not self._is_sized():
            wrong("--resize-mode", "needs --width or --height; without them the picture keeps its size")
        self._run(prompts, change, image.stem)

    def _is_sized(self) -> bool:
        asked = self._options["width"] is not None or self._options["height"] is not None
        return asked or self._old.HasField("width") or self._old.HasField("height")

    def _change(self, given: Editing) -> dict[str, Any]:
        """The keywords of `AsyncClient.edit`, without the picture."""
        _refuse_contradictions(given)
        return {
            "strength": given.strength,
            "mask": picture(given.mask, "--mask") if given.mask is not None else None,
            "mask_blur": given.mask_blur,
            "padding_crop": given.padding_crop,
            "keep_unmasked": given.keep_unmasked or None,
            "margins": margins(given.outpaint) if given.outpaint is not None else None,
            "resize_mode": given.resize_mode,
        }

    def _run(self, prompts: Sequence[str], change: dict[str, Any] | None, title: str) -> None:
        title = self._old.prompt or title
        jobs = [
            Job(index, prompt, self._options, prompt or title, change) for index, prompt in enumerate(prompts or [None])
        ]
        images = self._options["num_images"] or self._old.num_images or 1
        if not self._view.run(AsyncClient(**self._server.keywords()), jobs, images):
            raise typer.Exit(1)


def _refuse_contradictions(given: Editing) -> None:
    if given.outpaint is not None and (given.mask is not None or given.strength is not None):
        wrong("--outpaint", f"cannot be combined with {'--strength' if given.mask is None else '--mask'}")
    if given.mask is not None:
        return
    for name in ("mask_blur", "padding_crop", "keep_unmasked"):
        if (value := getattr(given, name)) is not None and value is not False:
            wrong(f"--{name.replace('_', '-')}", "needs --mask")


def _scheduler(given: Scheduling, recipe: Recipe | None) -> SchedulerSpec | dict[str, Any] | None:
    """The scheduler to ask for; where none is named, that of the recipe with what is given changed."""
    options = by_key(given.option) or None
    spec = SchedulerSpec(given.scheduler, given.sigma_schedule, given.timestep_spacing, options)
    if spec == SchedulerSpec():
        return None
    return _changed(recipe, spec) if recipe is not None and spec.name is None else spec


def _changed(recipe: Recipe, given: SchedulerSpec) -> dict[str, Any]:
    changes = {name: value for name, value in asdict(given).items() if value is not None}
    old: Mapping[str, Any] = json_format.MessageToDict(recipe.parameters.scheduler, preserving_proto_field_name=True)
    return {**old, **changes, "options": {**old.get("options", {}), **changes.get("options", {})}}
