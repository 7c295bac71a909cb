"""Requests in the protobuf JSON form of darkroom.v1."""

from __future__ import annotations

import dataclasses
from typing import Any

from darkroom_plugins.request import ControlChoice, ImageToImage, Inpaint, Outpaint, Request

MAX_EXACT = 2**53  # greater integers lose digits where numbers are doubles: they are text
EDIT_FIELDS = {ImageToImage: "image_to_image", Inpaint: "inpaint", Outpaint: "outpaint"}  # in EditRequest
COPIED = (
    "task",
    "model",
    "prompt",
    "negative_prompt",
    "width",
    "height",
    "num_inference_steps",
    "guidance_scale",
    "guidance_rescale",
    "guidance_start",
    "guidance_end",
    "cache_interval",
    "clip_skip",
    "eta",
)


def parameters_json(request: Request, seed: int) -> dict[str, Any]:
    """The Parameters of one image."""
    result = {name: getattr(request, name) for name in COPIED if getattr(request, name) is not None}
    if not request.sized:  # the size is the input picture's
        del result["width"], result["height"]
    for name in ("prompt_2", "negative_prompt_2"):
        if getattr(request, name):
            result[name] = getattr(request, name)
    if request.prompt_syntax != "plain":
        result["prompt_syntax"] = f"PROMPT_SYNTAX_{request.prompt_syntax}".upper()
    result |= _conditions(request)
    if request.hires_fix is not None:
        chosen = dataclasses.asdict(request.hires_fix)
        result["hires_fix"] = chosen | {"upscaler": f"UPSCALER_{chosen['upscaler']}".upper().replace("-", "_")}
    result["seed"] = seed if seed <= MAX_EXACT else str(seed)
    scheduler: dict[str, Any] = {"name": request.scheduler.name}
    for field in ("sigma_schedule", "timestep_spacing"):
        if value := getattr(request.scheduler, field):
            scheduler[field] = f"{field}_{value}".upper()
    if request.scheduler.options:
        scheduler["options"] = request.scheduler.options.model_dump(mode="json", exclude_none=True)
    result["scheduler"] = scheduler
    if request.extensions:
        result["extensions"] = {n: p.model_dump(mode="json") for n, p in sorted(request.extensions.items())}
    return result


def edit_json(request: Request) -> dict[str, Any]:
    """The edit of an EditRequest, without pictures; empty for a GenerateRequest."""
    if request.image is None:
        return {}
    found: dict[str, Any] = {"resize_mode": f"RESIZE_MODE_{request.resize_mode}".upper()} if request.sized else {}
    if request.edit is not None:
        fields = {f.name: getattr(request.edit, f.name) for f in dataclasses.fields(request.edit) if f.name != "mask"}
        found[EDIT_FIELDS[type(request.edit)]] = {name: value for name, value in fields.items() if value is not None}
    return {"edit": found}


def _conditions(request: Request) -> dict[str, Any]:
    """LoRAs, controls (without images) and size conditioning, if set."""
    found: dict[str, Any] = {}
    if request.loras:
        found["loras"] = [{"name": lora.name, "weight": lora.weight} for lora in request.loras]
    if request.controls:
        found["controls"] = [_control(control) for control in request.controls]
    if sizes := request.size_conditioning:
        pairs = {"original": sizes.original_size, "target": sizes.target_size}
        found["size_conditioning"] = {
            **{f"{name}_height": height for name, (height, _) in pairs.items()},
            **{f"{name}_width": width for name, (_, width) in pairs.items()},
            "crop_top": sizes.crop[0],
            "crop_left": sizes.crop[1],
        }
    return found


def _control(control: ControlChoice) -> dict[str, Any]:
    fields = {name: getattr(control, name) for name in ("model", "scale", "start", "end", "guess_mode")}
    if control.preprocessor:
        fields["preprocessor"] = control.preprocessor
    if control.options:
        fields["preprocessor_options"] = control.options.model_dump(mode="json", exclude_none=True)
    return fields
