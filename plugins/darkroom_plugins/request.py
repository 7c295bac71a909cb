"""What was asked for, as plugins see it: plain, checked, with every default filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from pydantic import BaseModel

SigmaSchedule = Literal["default", "karras", "exponential", "beta"]
TimestepSpacing = Literal["linspace", "leading", "trailing"]
PreviewMode = Literal["off", "latent-rgb", "tiny-vae", "full-vae"]
ImageFormat = Literal["png", "jpeg", "webp"]
Pixels: TypeAlias = "np.ndarray[Any, Any]"
ResizeMode = Literal["crop", "pad", "stretch"]
PromptSyntax = Literal["plain", "weighted"]
SafetyPolicy = Literal["off", "flag", "block"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerChoice:
    """A noise scheduler by its entry's name, with what was asked of it (None: as the model is configured)."""

    name: str
    sigma_schedule: SigmaSchedule | None = None
    timestep_spacing: TimestepSpacing | None = None
    options: BaseModel | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraChoice:
    """A LoRA by its name, with its weight."""

    name: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ControlChoice:
    """A ControlNet by its name with its map; `start` and `end` are fractions of the steps."""

    model: str
    image: Pixels | None  # (height, width, 3) uint8, as it was sent; None once its map is made
    preprocessor: str | None = None  # what makes the map from the image; None: it is the map
    options: BaseModel | None = None  # the preprocessor's
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    guess_mode: bool = False
    echo_map: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageToImage:
    """Repaint the whole picture; `strength` is the part of the steps that run."""

    strength: float = 0.8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inpaint:
    """Repaint what is white in the mask. Lengths are in pixels."""

    mask: Pixels  # (height, width) uint8, of the image's size
    strength: float = 1.0
    mask_blur: int = 4
    padding_crop: int | None = None
    keep_unmasked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outpaint:
    """Paint on beyond the picture's edges, by so many pixels."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


EditChoice: TypeAlias = ImageToImage | Inpaint | Outpaint


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeConditioning:
    """What an SDXL model is told about sizes: (height, width) and (top, left) in pixels."""

    original_size: tuple[int, int]
    crop: tuple[int, int]
    target_size: tuple[int, int]


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
    """One checked request. Names, units and ranges are those of darkroom.v1; `width` and `height` are the size at which
    the model works. An edit of the picture's own size (`sized` is false) comes back at that size."""

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
    guidance_start: float = 0.0  # shares of the steps, between which there is guidance
    guidance_end: float = 1.0
    cache_interval: int = 1  # evaluations; each so often the denoiser's inner layers are run
    clip_skip: int
    eta: float
    seed: int
    scheduler: SchedulerChoice
    prompt_2: str = ""
    negative_prompt_2: str = ""
    prompt_syntax: PromptSyntax = "plain"
    size_conditioning: SizeConditioning | None = None
    loras: tuple[LoraChoice, ...] = ()
    controls: tuple[ControlChoice, ...] = ()
    image: Pixels | None = None  # (height, width, 3) uint8, as it was sent
    edit: EditChoice | None = None
    resize_mode: ResizeMode = "crop"
    sized: bool = True
    extensions: Mapping[str, BaseModel] = field(default_factory=dict)
    preview: PreviewOptions
    output: OutputOptions
    deterministic: bool = False
    safety: SafetyPolicy = "off"  # the model's: what happens with pictures in which the checker finds something

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance is on (as in diffusers: above 1)."""
        return self.guidance_scale > 1.0

    @property
    def approximations(self) -> tuple[str, ...]:
        """What it asks for that makes its pictures faster, and not quite what they are without it; in sentences."""
        interval = f"The inner layers of the denoiser run only every {self.cache_interval} evaluations."
        start, end = self.guidance_start, self.guidance_end
        guidance = f"There is guidance only between {start:.0%} and {end:.0%} of the steps."
        asked = {guidance: self.guidance_interval, interval: self.cache_interval > 1}
        return tuple(sentence for sentence, applies in asked.items() if applies)

    @property
    def guidance_interval(self) -> bool:
        """Whether there is guidance for a part of the steps only."""
        return self.guided and (self.guidance_start, self.guidance_end) != (0.0, 1.0)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Each image's own seed."""
        return tuple(self.seed + i for i in range(self.num_images))
