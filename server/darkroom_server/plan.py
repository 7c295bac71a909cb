"""Decides who makes a job's images, and how."""

from __future__ import annotations

import logging
from typing import Any

from darkroom_plugins.contract import Finisher
from darkroom_plugins.errors import InvalidRequest, Violation
from darkroom_plugins.request import Request
from darkroom_server.catalog import Catalog
from darkroom_server.jobs import Plan, count_steps
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
    first = task.first_evaluation(request, scheduler.timesteps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)  # else schedulers look for it, and take the second of two equal timesteps
    return Plan(
        model=model,
        task=task,
        conditioners=tuple(c for _, c in sorted(plugins.conditioners.items()) if c.wants(request)),
        adapters=tuple(a for _, a in sorted(plugins.adapters.items()) if a.wants(request)),
        finishers=_finishers(request, catalog),
        scheduler=scheduler,
        steps=count_steps(scheduler.timesteps, first, scheduler.order, request.num_inference_steps),
        rows=len(model.loaded.prompt_keys(request)),
    )


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
