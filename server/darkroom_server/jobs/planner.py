"""Decides who makes a job's images, and how."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from darkroom_plugins.canvas import Canvas
from darkroom_plugins.contract import Conditioner, Finisher, Task
from darkroom_plugins.errors import InvalidRequest, UnsupportedCombination, Violation
from darkroom_plugins.files import LOADING
from darkroom_plugins.manager import Plugins
from darkroom_plugins.request import Pixels, Request
from darkroom_plugins.sample import PromptPiece
from darkroom_server.errors import to_domain_error
from darkroom_server.jobs.events import ControlMade
from darkroom_server.jobs.job import Job
from darkroom_server.jobs.plan import Plan
from darkroom_server.models.catalog import Catalog
from darkroom_server.models.holdings import ModelAssets
from darkroom_server.models.model import Model
from darkroom_server.schedulers.schedule import count_steps

if TYPE_CHECKING:
    from pydantic import BaseModel

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A job's pictures at the size at which the model works."""

    canvas: Canvas
    controls: tuple[Pixels, ...]  # the map of each of the request's controls


def fit(request: Request, catalog: Catalog) -> Fitted:
    """The pictures of a checked request, fitted, and the maps that preprocessors make of them.

    :raises DarkroomError: what a plugin raised
    """
    try:
        canvas = catalog.plugins.tasks[request.task].canvas(request)
        return Fitted(canvas, _maps(request, catalog.plugins, canvas))
    except Exception as error:
        raise to_domain_error(error) from None


def plan(request: Request, fitted: Fitted, catalog: Catalog) -> Plan:
    """The plan of a checked request.

    :raises InvalidRequest: the scheduler refuses what is asked of it
    :raises DarkroomError: what a plugin raised
    """
    try:
        return _plan(request, fitted, catalog)
    except Exception as error:
        raise to_domain_error(error) from None


def _plan(request: Request, fitted: Fitted, catalog: Catalog) -> Plan:
    plugins, model = catalog.plugins, catalog.models[request.model]
    task = plugins.tasks[request.task]
    _refuse_misfit(request, catalog, task)
    asked = model.name, repr(request.scheduler), request.num_inference_steps
    # What jobs that ask alike share: it takes milliseconds to make, and tens of kilobytes.
    scheduler = catalog.shared.get(asked) or _scheduler(request, catalog, model)
    first = task.first_evaluation(request, scheduler.timesteps, scheduler.order)
    steps = catalog.shared.get((asked, first)) or count_steps(
        scheduler.timesteps, first, scheduler.order, request.num_inference_steps
    )
    catalog.shared.update({asked: scheduler, (asked, first): steps})
    catalog.recent.append((scheduler, steps))
    conditioners = tuple(c for _, c in sorted(plugins.conditioners.items()) if c.wants(request))
    assets = ModelAssets(catalog.assets, catalog.store, model)
    return Plan(
        model=model,
        task=task,
        conditioners=conditioners,
        adapters=tuple(a for _, a in sorted(plugins.adapters.items()) if a.wants(request)),
        finishers=_finishers(request, catalog),
        scheduler=scheduler,
        steps=steps,
        prompts=model.family.prompt_keys(request, partial(_read, conditioners, request, assets)),
        canvas=fitted.canvas,
        controls=fitted.controls,
        assets=assets,
        needs=needs(request),
    )


def _read(
    conditioners: Sequence[Conditioner], request: Request, assets: ModelAssets, text: str
) -> tuple[PromptPiece, ...]:
    """A prompt's text as the conditioners read it, one after the other."""
    pieces: tuple[PromptPiece, ...] = (PromptPiece(text),)
    for conditioner in conditioners:
        pieces = conditioner.read_prompt(pieces, request, assets)
    return pieces


def needs(request: Request) -> tuple[tuple[str, ...], ...]:
    """The keys of what must be resident for a request."""
    nets = [("controlnet", control.model) for control in request.controls if control.scale > 0]
    loras = [("lora", lora.name) for lora in request.loras if lora.weight != 0]
    return ("model", request.model), *((*each, request.model) for each in (*nets, *loras))


def _maps(request: Request, plugins: Plugins, canvas: Canvas) -> tuple[Pixels, ...]:
    """The map of each control, at the working size: made there, so that its lines are as fine as they can be."""
    maps = []
    for index, control in enumerate(request.controls):
        assert control.image is not None
        pixels = canvas.place(control.image, f"parameters.controls[{index}].image")
        if control.preprocessor:
            pixels = run_preprocessor(plugins, control.preprocessor, pixels, control.options)
        maps.append(pixels)
    return tuple(maps)


def run_preprocessor(plugins: Plugins, name: str, pixels: Pixels, options: BaseModel | None) -> Pixels:
    """The map that a preprocessor makes of a picture, both (height, width, 3) uint8.

    :raises ValueError: it made something else
    """
    made = plugins.preprocessors[name].run(pixels, options)
    if made.shape != pixels.shape or made.dtype != pixels.dtype:
        raise ValueError(f"the preprocessor {name} made {made.shape} {made.dtype} of {pixels.shape}")
    return made


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
        if parameters is not None or (not finisher.Parameters and finisher.wants(request)):
            found.append((finisher, parameters))
    return tuple(found)


def _refuse_misfit(request: Request, catalog: Catalog, task: Task) -> None:
    """:raises UnsupportedCombination: the task cannot do with the scheduler"""
    entry = catalog.plugins.schedulers[request.scheduler.name]
    if task.adds_noise and not hasattr(entry.scheduler, "add_noise"):
        problem = f"the scheduler {entry.name} cannot begin with a picture, as the task {task.name} does"
        raise UnsupportedCombination([Violation("parameters.scheduler", problem)])


def _scheduler(request: Request, catalog: Catalog, model: Model) -> Any:
    """A scheduler with its timesteps, on the CPU: nothing in a step then waits for the device."""
    entry = catalog.plugins.schedulers[request.scheduler.name]
    try:
        with LOADING:
            scheduler = entry.build(model.family.scheduler_config, request.scheduler)
            scheduler.set_timesteps(request.num_inference_steps)
    except Exception as error:  # diffusers raises ValueError, but also others, for what its classes cannot do
        log.info("scheduler %s: %r", entry.name, error)
        problem = f"the scheduler {entry.name} cannot take this number of steps with these options"
        raise InvalidRequest([Violation("parameters.scheduler", problem)]) from error
    return scheduler
