"""Generation parameters as image metadata: JSON, and the text chunk of AUTOMATIC1111's web UI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from darkroom_plugins import hookimpl
from darkroom_plugins.contract import Finisher
from darkroom_plugins.request import Request
from darkroom_plugins.request_json import MAX_EXACT, edit_json, parameters_json
from darkroom_plugins.sample import Picture
from darkroom_plugins.version import VERSION

darkroom_api_version = 1


class Recipe(Finisher):
    """Puts the parameters, in protobuf's JSON form (a seed beyond 2^53 as text), and the inspectors' findings into
    `metadata`, and AUTOMATIC1111's form into the text chunk `parameters`."""

    name = "recipe"
    description = "Writes how the picture was made into it."

    def finish(self, picture: Picture, request: Request, parameters: None) -> Picture:
        picture.metadata["darkroom"] = VERSION
        picture.metadata["parameters"] = parameters_json(request, picture.seed)
        picture.metadata |= edit_json(request)
        if request.deterministic:
            picture.metadata["deterministic"] = True
        picture.metadata |= picture.findings
        if picture.seed > MAX_EXACT:
            picture.metadata["note"] = "seed is text, as readers of JSON with doubles would change it"
        picture.text["parameters"] = parameters_line(request, picture.seed, picture.findings)
        return picture


def parameters_line(request: Request, seed: int, findings: Mapping[str, Any] | None = None) -> str:
    """The recipe in the form of AUTOMATIC1111's web UI: prompt, negative prompt, then settings and findings separated
    by commas."""
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    settings = {
        "Steps": request.num_inference_steps,
        "Sampler": request.scheduler.name,
        "CFG scale": f"{request.guidance_scale:g}",
        "Seed": seed,
        "Size": f"{request.width}x{request.height}",
        "Model": request.model,
    }
    if request.scheduler.sigma_schedule:
        settings["Schedule type"] = request.scheduler.sigma_schedule.capitalize()
    if request.clip_skip:
        settings["Clip skip"] = request.clip_skip + 1  # A1111 counts from 1
    if request.guidance_rescale:
        settings["CFG Rescale"] = f"{request.guidance_rescale:g}"
    if request.cache_interval > 1:
        settings["DeepCache interval"] = request.cache_interval
    if request.guidance_interval:
        settings["CFG interval"] = f"{request.guidance_start:g} to {request.guidance_end:g}"
    if (hires := request.hires_fix) is not None:
        settings |= {
            "Hires resize": f"{hires.width}x{hires.height}",
            "Hires steps": hires.num_inference_steps,
            "Hires upscaler": hires.upscaler,
            "Denoising strength": f"{hires.strength:g}",
        }
    settings |= {name.capitalize(): finding for name, finding in (findings or {}).items()}
    lines.append(", ".join(f"{key}: {value}" for key, value in settings.items()))
    return "\n".join(lines)


@hookimpl
def darkroom_finishers() -> Sequence[Finisher]:
    return [Recipe()]
