"""Presets of models: values for the parameters of requests that name one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, JsonValue

from darkroom_plugins.request import PromptSyntax, SigmaSchedule, TimestepSpacing, Upscaler

Count = Annotated[int, Field(ge=0, lt=2**31)]


def spelled(name: Any) -> Any:
    """The one spelling of a name: ``latent-rgb`` for ``LATENT_RGB``."""
    return name.lower().replace("_", "-") if isinstance(name, str) else name


class HiresFixSettings(BaseModel, extra="forbid"):
    """The second stage of new pictures."""

    factor: float | None = None
    width: Count | None = None
    height: Count | None = None
    upscaler: Annotated[Upscaler | None, BeforeValidator(spelled)] = None
    strength: float | None = None
    num_inference_steps: Count | None = None


class PresetSettings(BaseModel, extra="forbid"):
    """What requests leave unset takes these values; None: the model's default. Ranges are those of requests, which are
    checked when the models are there."""

    description: str = ""
    scheduler: str | None = None
    sigma_schedule: Annotated[SigmaSchedule | None, BeforeValidator(spelled)] = None
    timestep_spacing: Annotated[TimestepSpacing | None, BeforeValidator(spelled)] = None
    scheduler_options: dict[str, JsonValue] = {}
    num_inference_steps: Count | None = None
    guidance_scale: float | None = None
    guidance_rescale: float | None = None
    guidance_start: float | None = None
    guidance_end: float | None = None
    cache_interval: Count | None = None
    clip_skip: Count | None = None
    eta: float | None = None
    negative_prompt: str | None = None
    prompt_syntax: Annotated[PromptSyntax | None, BeforeValidator(spelled)] = None
    width: Count | None = None  # pixels; of Generate, as an edit has its picture's size
    height: Count | None = None
    hires_fix: HiresFixSettings | None = None  # of Generate
    loras: dict[str, float] = {}  # weights by name

    @property
    def values(self) -> Mapping[str, Any]:
        """What is set, by key."""
        return self.model_dump(exclude_defaults=True, exclude={"description"})
