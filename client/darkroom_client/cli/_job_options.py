"""Builds and runs the jobs of `darkroom generate` and `darkroom edit`."""

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
from darkroom_client.cli._options import Conditions, Picture, Scheduling, Sdxl, Server, Source
from darkroom_client.cli._prompts import Prompt, read_prompts
from darkroom_client.cli._run_options import Editing, Prompting, Results, SecondStage
from darkroom_client.cli._values import parse_margins, parse_pairs, read_picture, usage_error
from darkroom_client.cli._view import View
from darkroom_client.options import JobOptions, SchedulerSpec
from darkroom_client.recipes import Recipe

_NO_PROMPT = "say what the picture shows, in quotes, or give a picture with a recipe by --from"


class JobRunner:
    """Reads the options that `generate` and `edit` share, and runs the jobs."""

    def __init__(
        self,
        server: Server,
        source: Source,
        results: Results,
        prompting: Prompting,
        picture: Picture,
        sdxl: Sdxl,
        scheduling: Scheduling,
        condition_options: Conditions,
    ) -> None:
        self._server = server
        self._source = source
        self._recipe = _recipes.read(source)
        self._base = self._recipe.parameters if self._recipe is not None else parameters_pb2.Parameters()
        self._view = View(results, prompting.jobs)
        self._view.check()
        self._prompting = prompting
        self._options: JobOptions = {
            **picture.keywords(),
            **sdxl.keywords(),
            **conditions(condition_options, server, self._recipe, echo_maps=results.echo_maps is not None),
            "parameters": self._recipe,
            "scheduler": _scheduler(scheduling, self._recipe),
            "eta": scheduling.eta,
            "num_images": results.num_images,
            "deterministic": results.deterministic or (False if results.no_deterministic else None),
            "priority": results.priority,
            "keep": results.keep or None,
            "output": format_for(results.out, results.image_format),
        }

    def generate(self, prompts: Sequence[str], second_stage: SecondStage) -> None:
        """Runs a job per prompt, or one for the recipe.

        :raises typer.Exit: if a job fails.
        """
        if self._recipe is not None:
            _recipes.check_generate(self._recipe, self._source, self._options["task"])
        elif not prompts:
            usage_error("PROMPT", _NO_PROMPT)
        self._options["hires_fix"] = _hires_fix(second_stage, self._base)
        self._run(self._read(prompts), None, "")

    def edit(self, image: Path, prompts: Sequence[str], editing: Editing) -> None:
        """Runs an edit per prompt, or one for the recipe.

        :raises typer.Exit: if a job fails.
        """
        if self._recipe is None and not prompts:
            usage_error("PROMPT", _NO_PROMPT)
        edit_options = self._edit_options(editing) | {"image": read_picture(image, "IMAGE")}
        if self._recipe is not None:
            _recipes.adapt_to_edit(self._recipe, self._source, edit_options, self._options["task"])
        if editing.resize_mode and not self._has_size():
            usage_error("--resize-mode", "needs --width or --height; without them the picture keeps its size")
        self._run(self._read(prompts), edit_options, image.stem)

    def _has_size(self) -> bool:
        given = self._options["width"] is not None or self._options["height"] is not None
        return given or self._base.HasField("width") or self._base.HasField("height")

    def _edit_options(self, given: Editing) -> dict[str, Any]:
        """The keywords that only `AsyncClient.edit` has, without the picture."""
        _refuse_contradictions(given)
        return {
            "strength": given.strength,
            "mask": read_picture(given.mask, "--mask") if given.mask is not None else None,
            "mask_blur": given.mask_blur,
            "padding_crop": given.padding_crop,
            "keep_unmasked": given.keep_unmasked or None,
            "margins": parse_margins(given.outpaint) if given.outpaint is not None else None,
            "resize_mode": given.resize_mode,
        }

    def _read(self, prompts: Sequence[str]) -> list[Prompt]:
        return read_prompts(prompts, self._prompting, self._options["seed"])

    def _run(self, prompts: Sequence[Prompt], edit_options: dict[str, Any] | None, title: str) -> None:
        title = self._base.prompt or title
        jobs = [
            Job(index, prompt.text, self._options, prompt.text or title, edit_options, line=prompt.line)
            for index, prompt in enumerate(prompts)
        ] or [Job(0, None, self._options, title, edit_options)]
        images = self._options["num_images"] or self._base.num_images or 1
        if not self._view.run(AsyncClient(**self._server.keywords()), jobs, images):
            raise typer.Exit(1)


def _refuse_contradictions(given: Editing) -> None:
    if given.outpaint is not None and (given.mask is not None or given.strength is not None):
        usage_error("--outpaint", f"cannot be combined with {'--strength' if given.mask is None else '--mask'}")
    if given.mask is not None:
        return
    for name in ("mask_blur", "padding_crop", "keep_unmasked"):
        if (value := getattr(given, name)) is not None and value is not False:
            usage_error(f"--{name.replace('_', '-')}", "needs --mask")


def _hires_fix(given: SecondStage, base: parameters_pb2.Parameters) -> dict[str, Any] | None:
    """The keyword `hires_fix`. Without --hires-fix, the other options change the recipe's."""
    chosen = given.keyword()
    if given.no_hires_fix:
        if chosen is not None:
            usage_error("--no-hires-fix", "cannot be combined with options of it")
        base.ClearField("hires_fix")
    if chosen is None or given.hires_fix is not None:
        return chosen
    if not base.HasField("hires_fix"):
        usage_error("--hires-fix", "must be given, too")
    return {field.name: value for field, value in base.hires_fix.ListFields()} | chosen


def _scheduler(given: Scheduling, recipe: Recipe | None) -> SchedulerSpec | dict[str, Any] | None:
    """The keyword `scheduler`. Without --scheduler, the other options change the recipe's scheduler."""
    options = parse_pairs(given.option) or None
    spec = SchedulerSpec(given.scheduler, given.sigma_schedule, given.timestep_spacing, options)
    if spec == SchedulerSpec():
        return None
    return _merge(recipe, spec) if recipe is not None and spec.name is None else spec


def _merge(recipe: Recipe, given: SchedulerSpec) -> dict[str, Any]:
    changes = {name: value for name, value in asdict(given).items() if value is not None}
    old: Mapping[str, Any] = json_format.MessageToDict(recipe.parameters.scheduler, preserving_proto_field_name=True)
    return {**old, **changes, "options": {**old.get("options", {}), **changes.get("options", {})}}
