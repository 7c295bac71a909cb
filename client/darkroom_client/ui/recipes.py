"""From a picture's recipe, or a job's resolved parameters, to the page's fields."""

from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format

from darkroom.v1.parameters_pb2 import Parameters
from darkroom_client.events import Accepted
from darkroom_client.ui.settings import INPAINT, MAX_LORAS, MODES, OUTPAINT, SIDES, SLOTS, TEXT

_SAME = ("prompt", "negative_prompt", "model", "num_inference_steps", "guidance_scale", "width", "height")
_EDITS = ("image_to_image", "inpaint", "outpaint")


def fields_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The page's fields that make the picture again, but for its input pictures, which a recipe does not contain.

    :param recipe: its JSON object, as `Image.metadata` has it.
    """
    parameters = recipe["parameters"]
    scheduler = parameters.get("scheduler", {})
    found = {name: parameters[name] for name in _SAME if parameters.get(name) is not None}
    task = parameters.get("task", TEXT)
    return {
        "negative_prompt": "",
        **found,
        "mode": task if task in MODES else TEXT,
        "template": "",
        "weighted": parameters.get("prompt_syntax") == "PROMPT_SYNTAX_WEIGHTED",
        "scheduler": scheduler.get("name"),
        "sigma_schedule": _sigmas(scheduler.get("sigma_schedule", "")),
        "hires_fix": hires["width"] / parameters["width"] if (hires := parameters.get("hires_fix")) else 1,
        "num_images": 1,
        "seed": str(parameters.get("seed", "")),
        "random_seed": False,
        **_loras(parameters.get("loras", ())),
        **_controls(parameters.get("controls", ())),
        **_edit(recipe.get("edit") or {}),
    }


def preset_fields(parameters: Parameters) -> dict[str, Any]:
    """The page's fields that a preset sets. The rest of it, as its LoRAs, is the server's to fill in."""
    values = json_format.MessageToDict(parameters, preserving_proto_field_name=True)
    scheduler = values.get("scheduler", {})
    chosen = {"scheduler": scheduler.get("name"), "sigma_schedule": _sigmas(scheduler.get("sigma_schedule", ""))}
    return {name: values[name] for name in _SAME if name in values} | chosen


def recipe_of(accepted: Accepted) -> dict[str, Any]:
    """The recipe of a job that has no picture yet."""
    parameters = json_format.MessageToDict(accepted.parameters, preserving_proto_field_name=True)
    return {"parameters": {**parameters, "seed": accepted.seeds[0]}}


def _sigmas(name: str) -> str | None:
    name = name.removeprefix("SIGMA_SCHEDULE_").lower()
    return name if name not in ("", "unspecified") else None


def _loras(loras: Any) -> dict[str, Any]:
    used = list(loras)[:MAX_LORAS]
    weights = {f"weight_{index}": lora.get("weight", 1.0) for index, lora in enumerate(used)}
    return {"loras": [lora["name"] for lora in used], **weights}


def _controls(controls: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for slot in range(SLOTS):
        control = controls[slot] if slot < len(controls) else {}
        fields |= {
            f"control_model_{slot}": control.get("model"),
            f"control_preprocessor_{slot}": control.get("preprocessor", ""),
            f"control_scale_{slot}": control.get("scale", 1.0),
            f"control_start_{slot}": control.get("start", 0.0),
            f"control_end_{slot}": control.get("end", 1.0),
        }
    return fields


def _edit(edit: Mapping[str, Any]) -> dict[str, Any]:
    kind = next((name for name in _EDITS if name in edit), None)
    if kind is None:
        return {}
    values = edit[kind]
    if kind == OUTPAINT:
        return {side: values.get(side, 0) for side in SIDES}
    fields = {"strength": values["strength"]} if "strength" in values else {}
    if kind == INPAINT:
        crop = values.get("padding_crop")
        fields |= {"keep_unmasked": values.get("keep_unmasked", False), "closely": crop is not None}
        fields |= {name: values[name] for name in ("mask_blur", "padding_crop") if name in values}
    return fields
