"""Requests as plugins see them: plain dataclasses, validated, with every default filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
Upscaler = Literal["latent-nearest", "latent-bilinear", "latent-bicubic", "pixel-bicubic", "pixel-lanczos"]
SafetyPolicy = Literal["off", "flag", "block"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerChoice:
    """A noise scheduler by its entry's name, with settings (None: the model's own)."""

    name: str
    sigma_schedule: SigmaSchedule | None = None
    timestep_spacing: TimestepSpacing | None = None
    options: BaseModel | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraChoice:
    """A LoRA by name, with its weight."""

    name: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ControlChoice:
    """A ControlNet by name, with its map; `start` and `end` are fractions of the steps."""

    model: str
    image: Pixels | None  # (height, width, 3) uint8, as sent; None once its map is in Sample.controls
    preprocessor: str | None = None  # None: the image is the map
    options: BaseModel | None = None  # the preprocessor's
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    guess_mode: bool = False
    echo_map: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageToImage:
    """Repaint the whole picture; `strength` is the fraction of the steps that run."""

    strength: float = 0.8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inpaint:
    """Repaint the white part of the mask. Lengths in pixels."""

    mask: Pixels  # (height, width) uint8, of the image's size; 255: repainted, 0: kept
    strength: float = 1.0
    mask_blur: int = 4
    padding_crop: int | None = None
    keep_unmasked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outpaint:
    """Extend the picture beyond its edges. Lengths in pixels."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


EditChoice: TypeAlias = ImageToImage | Inpaint | Outpaint


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeConditioning:
    """SDXL's size and crop conditioning: (height, width) and (top, left) in pixels."""

    original_size: tuple[int, int]
    crop: tuple[int, int]
    target_size: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class HiresFix:
    """A second stage: the result upscaled to this size in pixels, and denoised as by `ImageToImage`."""

    width: int
    height: int
    upscaler: Upscaler
    strength: float
    num_inference_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewOptions:
    """Which previews to send; `max_edge` in pixels."""

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
    """One validated request. Names, units and ranges as in darkroom.v1; `width` and `height` are the working size. If
    `sized` is false, the client set no size: an edited picture returns at its own."""

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
    guidance_start: float = 0.0  # guidance interval, fractions of the steps
    guidance_end: float = 1.0
    cache_interval: int = 1  # evaluations from one full step to the next (DeepCache)
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
    image: Pixels | None = None  # (height, width, 3) uint8, as sent
    edit: EditChoice | None = None
    resize_mode: ResizeMode = "crop"
    sized: bool = True
    hires_fix: HiresFix | None = None
    extensions: Mapping[str, BaseModel] = field(default_factory=dict)
    preview: PreviewOptions
    output: OutputOptions
    deterministic: bool = False
    safety: SafetyPolicy = "off"  # the model's

    @property
    def second_stage(self) -> Request | None:
        """The request of the second stage, an edit of the result of the first."""
        if (hires := self.hires_fix) is None:
            return None
        return replace(
            self,
            task="img2img",
            edit=ImageToImage(strength=hires.strength),
            width=hires.width,
            height=hires.height,
            num_inference_steps=hires.num_inference_steps,
        )

    @property
    def final_size(self) -> tuple[int, int]:
        """(width, height) of the picture, in pixels; of an edit its working size."""
        last = self.hires_fix or self
        return last.width, last.height

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance is on: scale above 1, as in diffusers."""
        return self.guidance_scale > 1.0

    @property
    def approximations(self) -> tuple[str, ...]:
        """A sentence for each approximation that the client chose."""
        interval = f"The inner layers of the denoiser run only every {self.cache_interval} evaluations."
        start, end = self.guidance_start, self.guidance_end
        guidance = f"There is guidance only between {start:.0%} and {end:.0%} of the steps."
        chosen = {guidance: self.guidance_interval, interval: self.cache_interval > 1}
        return tuple(sentence for sentence, applies in chosen.items() if applies)

    @property
    def guidance_interval(self) -> bool:
        """Whether there is guidance for some of the steps only."""
        return self.guided and (self.guidance_start, self.guidance_end) != (0.0, 1.0)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each image."""
        return tuple(self.seed + i for i in range(self.num_images))
