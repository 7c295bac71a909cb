"""Presets: what they set, as the message of a request, and how requests are filled with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from darkroom.v1 import parameters_pb2

if TYPE_CHECKING:
    from darkroom_server.config.presets import PresetSettings

SCHEDULER = {  # keys of a preset, by the fields of SchedulerSpec
    "name": "scheduler",
    "sigma_schedule": "sigma_schedule",
    "timestep_spacing": "timestep_spacing",
    "options": "scheduler_options",
}
SCALING = ("factor", "width", "height")  # of a second stage
SIZE = ("width", "height", "hires_fix")


def parameters_of(preset: PresetSettings) -> parameters_pb2.Parameters:
    """What a preset sets, and nothing else."""
    values = dict(preset.values)
    spec = {field: values.pop(key) for field, key in SCHEDULER.items() if key in values}
    loras: dict[str, float] = values.pop("loras", {})
    hires = values.get("hires_fix", {})
    for scope, field in (
        (values, "prompt_syntax"),
        (spec, "sigma_schedule"),
        (spec, "timestep_spacing"),
        (hires, "upscaler"),
    ):
        if field in scope:
            scope[field] = f"{field}_{scope[field]}".upper().replace("-", "_")
    parameters = parameters_pb2.Parameters(**values)
    if (options := spec.pop("options", None)) is not None:
        parameters.scheduler.options.update(options)
    for field, value in spec.items():
        setattr(parameters.scheduler, field, _enum_value(parameters.scheduler, field, value))
    for name, weight in loras.items():
        parameters.loras.add(name=name, weight=weight)
    return parameters


def filled(
    given: parameters_pb2.Parameters,
    preset: parameters_pb2.Parameters,
    *,
    sized: bool,
    same_scheduler: bool,
) -> parameters_pb2.Parameters:
    """A request's parameters, with the preset's where they are unset: its sizes if `sized`, and its scheduler's fields
    if the request has the `same_scheduler`. The request's LoRAs come first. A size of a second stage, or its factor,
    goes before both of the preset's."""
    result = parameters_pb2.Parameters()
    result.CopyFrom(preset)
    left_out = (*(() if sized else SIZE), *(() if same_scheduler else ("scheduler",)), "loras")
    for field in left_out:
        result.ClearField(field)
    if any(given.hires_fix.HasField(field) for field in SCALING):
        for field in SCALING:
            result.hires_fix.ClearField(field)
    result.MergeFrom(given)
    named = {lora.name for lora in given.loras}
    result.loras.extend(lora for lora in preset.loras if lora.name not in named)
    return result


def _enum_value(message: Any, field: str, value: Any) -> Any:
    enum = message.DESCRIPTOR.fields_by_name[field].enum_type
    return enum.values_by_name[value].number if enum is not None else value
