"""What the engine says of a job, before any of it is encoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from darkroom_server.models.residency import Loading

if TYPE_CHECKING:
    import numpy as np

    from darkroom_plugins.request import ImageFormat, PreviewMode
    from darkroom_server.device.transfer import PendingImage


@dataclass(frozen=True, slots=True)
class Accepted:
    """The job exists."""


@dataclass(frozen=True, slots=True)
class Started:
    """The job waits no more. For the server itself: its stream says nothing of it."""


@dataclass(frozen=True, slots=True)
class Queued:
    """The job waits behind `position` others, for about so many seconds."""

    position: int
    estimated_wait: float | None


@dataclass(frozen=True, slots=True)
class ControlMade:
    """A control's map is made, by a preprocessor unless it came with the request."""

    control_index: int
    pixels: np.ndarray[Any, Any]  # (height, width, 3) uint8
    preprocessor: str
    format: ImageFormat = "png"


@dataclass(frozen=True, slots=True)
class StepDone:
    """A step that the user asked for is done. `step` counts from 1; times are in seconds."""

    image_index: int
    step: int
    step_count: int
    timestep: float
    sigma: float | None
    elapsed: float
    eta: float
    batch_rows: int


@dataclass(frozen=True, slots=True)
class PreviewMade:
    """The estimate of the clean image after a step, still in the decoder's own size."""

    image_index: int
    step: int
    picture: PendingImage
    decoder: PreviewMode


@dataclass(frozen=True, slots=True)
class ImageDecoded:
    """An image is done, but for its finishers and its encoding."""

    image_index: int
    picture: PendingImage
    findings: dict[str, Any] = field(default_factory=dict)  # what inspectors found, by their names


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a job's time went, in seconds."""

    queue: float = 0.0
    load: float = 0.0
    encode_prompt: float = 0.0
    denoise: float = 0.0
    decode: float = 0.0


@dataclass(frozen=True, slots=True)
class Ended:
    """The job's last event: well when there is no error."""

    error: Exception | None = None
    timings: Timings = Timings()
    warnings: tuple[str, ...] = ()


Event = Accepted | Started | Queued | Loading | ControlMade | StepDone | PreviewMade | ImageDecoded | Ended
