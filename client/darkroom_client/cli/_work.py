"""What `darkroom generate` does with its options."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import typer
from google.protobuf import json_format

from darkroom_client._aio import AsyncClient
from darkroom_client.cli._files import format_for
from darkroom_client.cli._jobs import Job
from darkroom_client.cli._view import View
from darkroom_client.options import ImageFormatName, JobOptions, SchedulerSpec
from darkroom_client.recipes import Recipe, read_recipe


class Order:
    """The pictures asked for."""

    def __init__(
        self,
        prompts: Sequence[str],
        source: Path | None,
        out: str | None,
        image_format: str | None,
        options: JobOptions,
    ) -> None:
        if source is None and not prompts:
            raise typer.BadParameter("give at least one prompt, or a picture by --from", param_hint="PROMPT")
        self._prompts = prompts
        self._recipe = read_recipe(source) if source is not None else None
        self._out = out
        self._options = options
        self._options["parameters"] = self._recipe
        self._options["output"] = format_for(out, cast("ImageFormatName | None", image_format))

    def schedule_by(
        self, name: str | None, sigmas: str | None, spacing: str | None, options: Mapping[str, Any]
    ) -> None:
        """Sets the scheduler; without a name, that of the recipe with what is given changed."""
        given = SchedulerSpec(name, cast(Any, sigmas), cast(Any, spacing), options or None)
        if given != SchedulerSpec():
            changes_recipe = self._recipe is not None and name is None
            self._options["scheduler"] = _changed(self._recipe, given) if changes_recipe else given

    def run(self, client: Mapping[str, Any], previews: Path | None, preview_mode: str | None, *, as_json: bool) -> bool:
        """Makes the pictures; false when a job failed. `client` holds the arguments of AsyncClient."""
        view = View(self._out, previews, preview_mode, as_json)
        recipe_images = self._recipe.parameters.num_images if self._recipe is not None else 0
        return view.run(AsyncClient(**client), self._jobs(), self._options["num_images"] or recipe_images or 1)

    def _jobs(self) -> list[Job]:
        if self._recipe is not None and not self._prompts:
            return [Job(0, None, self._options, self._recipe.parameters.prompt)]
        return [Job(index, prompt, self._options, prompt) for index, prompt in enumerate(self._prompts)]


def _changed(recipe: Recipe | None, given: SchedulerSpec) -> dict[str, Any]:
    changes = {name: value for name, value in asdict(given).items() if value is not None}
    parameters = recipe.parameters if recipe is not None else None
    old = json_format.MessageToDict(parameters.scheduler, preserving_proto_field_name=True) if parameters else {}
    return old | changes | {"options": old.get("options", {}) | changes.get("options", {})}
