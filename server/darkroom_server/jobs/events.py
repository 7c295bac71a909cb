"""Events of a job, before images are encoded and messages built."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from darkroom_server.models.residency import Loading

if TYPE_CHECKING:
    import numpy as np

    from darkroom_plugins.request import ImageFormat, PreviewMode
    from darkroom_server.device.transfer import PendingImage


@dataclass(frozen=True, slots=True)
class Accepted:
    """The job is registered and planned. Seconds until its first turn, and until it is done; None: not known."""

    estimated_wait: float | None = None
    estimated_end: float | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """The job left the queue. Internal: not sent to clients."""


@dataclass(frozen=True, slots=True)
class Queued:
    """The job waits behind `position` others. Seconds until its first turn, and until it is done; None: not known."""

    position: int
    estimated_wait: float | None
    estimated_end: float | None = None


@dataclass(frozen=True, slots=True)
class ControlMade:
    """A control's map, from a preprocessor or from the request."""

    control_index: int
    pixels: np.ndarray[Any, Any]  # (height, width, 3) uint8
    preprocessor: str
    format: ImageFormat = "png"


@dataclass(frozen=True, slots=True)
class StepDone:
    """An inference step is done. `step` counts from 1; times are in seconds."""

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
    """A preview: the estimate of the clean image after a step, in the decoder's output size."""

    image_index: int
    step: int
    picture: PendingImage
    decoder: PreviewMode


@dataclass(frozen=True, slots=True)
class ImageDecoded:
    """A decoded image, before finishers and encoding."""

    image_index: int
    picture: PendingImage
    findings: dict[str, Any] = field(default_factory=dict)  # by inspector


@dataclass(frozen=True, slots=True)
class Forwarded:
    """The messages of an event of a job that another process does. A newer one with the same key replaces it."""

    messages: list[Any]
    key: Hashable = None
    picture_bytes: int = 0  # of a finished picture, encoded
    preview: bool = False


@dataclass(frozen=True, slots=True)
class Timings:
    """A job's seconds by phase."""

    queue: float = 0.0
    load: float = 0.0
    encode_prompt: float = 0.0
    denoise: float = 0.0
    decode: float = 0.0


@dataclass(frozen=True, slots=True)
class Ended:
    """The job's last event; without an error it succeeded."""

    error: Exception | None = None
    timings: Timings = Timings()
    warnings: tuple[str, ...] = ()


Event = Accepted | Started | Queued | Loading | ControlMade | StepDone | PreviewMade | ImageDecoded | Ended | Forwarded
