"""Checks the configured presets, each as a request that names nothing else, so that no request can be the first to
find one wrong."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from darkroom.v1 import image_service_pb2, parameters_pb2
from darkroom_plugins.errors import RequestRefused, Violation
from darkroom_server.api.validation.presets import SCHEDULER, parameters_of
from darkroom_server.api.validation.request import check_generate
from darkroom_server.jobs.planner import check_scheduler
from darkroom_server.models.model import InvalidPresets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from darkroom_server.config.consistency import Location
    from darkroom_server.config.presets import PresetSettings
    from darkroom_server.models.catalog import Catalog
    from darkroom_server.models.model import Model

PATH = re.compile(r"parameters\.(?:scheduler\.(?P<spec>\w+)|loras\[(?P<lora>\d+)\]|(?P<field>\w+))(?:\.(?P<rest>.*))?")


def check_presets(catalog: Catalog) -> None:
    """:raises InvalidPresets: with all that is wrong with them"""
    wrong = [
        (("models", index, "presets", name, *_key(violation.field, preset)), violation.description)
        for index, model in enumerate(catalog.models.values())
        for name, preset in model.settings.presets.items()
        for violation in _violations(model, preset, catalog)
    ]
    if wrong:
        raise InvalidPresets(wrong)


def _violations(model: Model, preset: PresetSettings, catalog: Catalog) -> Iterator[Violation]:
    """What is wrong with a preset, and not with its model."""
    without = _refusal(parameters_pb2.Parameters(), model, catalog)
    yield from (each for each in _refusal(parameters_of(preset), model, catalog) if each not in without)


def _refusal(parameters: parameters_pb2.Parameters, model: Model, catalog: Catalog) -> tuple[Violation, ...]:
    tasks = (name for name in catalog.tasks(model) if "Generate" in catalog.plugins.tasks[name].rpcs)
    parameters.model, parameters.task = model.name, next(tasks, "")
    try:
        request = check_generate(image_service_pb2.GenerateRequest(parameters=parameters), catalog)
        check_scheduler(request, model, catalog.plugins.schedulers)
    except RequestRefused as refusal:
        return refusal.violations
    return ()


def _key(path: str, preset: PresetSettings) -> Location:
    """The key of a preset that sets a field of a request; of what it does not set, none."""
    found = PATH.fullmatch(path)
    if found is None:
        return ()
    if found["lora"]:
        return "loras", list(preset.loras)[int(found["lora"])]
    key = SCHEDULER.get(found["spec"] or "", found["field"])
    inner = tuple((found["rest"] or "").split(".")) if found["spec"] == "options" and found["rest"] else ()
    if key == "hires_fix" and found["rest"] in preset.values.get(key, ()):
        inner = (found["rest"],)
    return (key, *inner) if key in preset.values else ()
