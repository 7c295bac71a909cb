"""Decides who makes a job's images, and how."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from darkroom_plugins.canvas import Canvas
from darkroom_plugins.contract import Conditioner, Finisher
from darkroom_plugins.errors import InvalidRequest, Violation
from darkroom_plugins.manager import Plugins
from darkroom_plugins.request import Pixels, Request
from darkroom_plugins.sample import PromptPiece
from darkroom_server.assets import ModelAssets
from darkroom_server.catalog import Catalog
from darkroom_server.events import ControlMade
from darkroom_server.jobs import Job, Plan, count_steps
from darkroom_server.models import Model
from darkroom_server.sampling import known

log = logging.getLogger(__name__)


def plan(request: Request, catalog: Catalog) -> Plan:
    """The plan of a checked request.

    :raises InvalidRequest: the scheduler refuses what is asked of it
    :raises DarkroomError: what a plugin raised
    """
    try:
        return _plan(request, catalog)
    except Exception as error:
        raise known(error) from None


def _plan(request: Request, catalog: Catalog) -> Plan:
    plugins, model = catalog.plugins, catalog.models[request.model]
    scheduler = _scheduler(request, catalog, model)
    task = plugins.tasks[request.task]
    first = task.first_evaluation(request, scheduler.timesteps, scheduler.order)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)  # else schedulers look for it, and take the second of two equal timesteps
    conditioners = tuple(c for _, c in sorted(plugins.conditioners.items()) if c.wants(request))
    canvas, assets = task.canvas(request), ModelAssets(catalog.assets, model)
    return Plan(
        model=model,
        task=task,
        conditioners=conditioners,
        adapters=tuple(a for _, a in sorted(plugins.adapters.items()) if a.wants(request)),
        finishers=_finishers(request, catalog),
        scheduler=scheduler,
        steps=count_steps(scheduler.timesteps, first, scheduler.order, request.num_inference_steps),
        prompts=model.loaded.prompt_keys(request, partial(_read, conditioners, request, assets)),
        canvas=canvas,
        controls=_maps(request, plugins, canvas),
        assets=assets,
    )


def _read(
    conditioners: Sequence[Conditioner], request: Request, assets: ModelAssets, text: str
) -> tuple[PromptPiece, ...]:
    """A prompt's text as the conditioners read it, one after the other."""
    pieces: tuple[PromptPiece, ...] = (PromptPiece(text),)
    for conditioner in conditioners:
        pieces = conditioner.read_prompt(pieces, request, assets)
    return pieces


def _maps(request: Request, plugins: Plugins, canvas: Canvas) -> tuple[Pixels, ...]:
    """The map of each control, at the working size: made there, so that its lines are as fine as they can be."""
    maps = []
    for index, control in enumerate(request.controls):
        pixels = canvas.place(control.image, f"parameters.controls[{index}].image")
        if control.preprocessor:
            pixels = plugins.preprocessors[control.preprocessor].run(pixels, control.options)
        maps.append(pixels)
    return tuple(maps)


def control_images(job: Job) -> list[ControlMade]:
    """The maps of a planned job that its client wants to see."""
    return [
        ControlMade(index, pixels, control.preprocessor or "")
        for index, (control, pixels) in enumerate(zip(job.request.controls, job.plan.controls, strict=True))
        if control.echo_map
    ]


def _finishers(request: Request, catalog: Catalog) -> tuple[tuple[Finisher, Any], ...]:
    """The finishers that take part, each with its parameters: those that have some come first."""
    plugins = catalog.plugins
    found = []
    for name, finisher in sorted(plugins.finishers.items(), key=lambda item: (item[1].Parameters is None, item[0])):
        parameters = request.extensions.get(plugins.owner("finishers", name)) if finisher.Parameters else None
        if parameters is not None or not finisher.Parameters:
            found.append((finisher, parameters))
    return tuple(found)


def _scheduler(request: Request, catalog: Catalog, model: Model) -> Any:
    """A scheduler with its timesteps, on the CPU: nothing in a step then waits for the device."""
    entry = catalog.plugins.schedulers[request.scheduler.name]
    try:
        scheduler = entry.build(model.loaded.scheduler_config, request.scheduler)
        scheduler.set_timesteps(request.num_inference_steps)
    except Exception as error:  # diffusers raises ValueError, but also others, for what its classes cannot do
        log.info("scheduler %s: %r", entry.name, error)
        problem = f"the scheduler {entry.name} cannot take this number of steps with these options"
        raise InvalidRequest([Violation("parameters.scheduler", problem)]) from error
    return scheduler
