"""What was asked for, as plugins see it: plain, checked, with every default filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pydantic import BaseModel

SigmaSchedule = Literal["default", "karras", "exponential", "beta"]
TimestepSpacing = Literal["linspace", "leading", "trailing"]
PreviewMode = Literal["off", "latent-rgb", "tiny-vae", "full-vae"]
ImageFormat = Literal["png", "jpeg", "webp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerChoice:
    """A noise scheduler by its entry's name, with what was asked of it (None: as the model is configured)."""

    name: str
    sigma_schedule: SigmaSchedule | None = None
    timestep_spacing: TimestepSpacing | None = None
    options: BaseModel | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewOptions:
    """Which previews to send: every n steps, at least so many seconds apart, at most so many pixels long."""

    mode: PreviewMode
    every_n_steps: int = 1
    min_interval_seconds: float = 0.0
    max_edge: int = 512
    format: ImageFormat = "jpeg"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """How finished pictures are encoded; quality (1-100) is None for PNG."""

    format: ImageFormat = "png"
    quality: int | None = None
    embed_metadata: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One checked request. Names, units and ranges are those of darkroom.v1 Parameters."""

    request_id: str
    task: str
    model: str
    prompt: str
    negative_prompt: str | None
    width: int
    height: int
    num_images: int
    num_inference_steps: int
    guidance_scale: float
    guidance_rescale: float
    clip_skip: int
    eta: float
    seed: int
    scheduler: SchedulerChoice
    extensions: Mapping[str, BaseModel] = field(default_factory=dict)
    preview: PreviewOptions
    output: OutputOptions
    deterministic: bool = False

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance is on (as in diffusers: above 1)."""
        return self.guidance_scale > 1.0

    @property
    def seeds(self) -> tuple[int, ...]:
        """Each image's own seed."""
        return tuple(self.seed + i for i in range(self.num_images))
