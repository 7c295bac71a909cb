"""The events of a job's stream.

Order, as in `darkroom.v1.ImageService`: `Accepted`; `Queued` and `Loading` while the job waits; `ControlImage`s; of
each image `Step` 1 to N, each `Preview` some time after its step, then `Image`; `Completed`. Images may interleave.
"""

import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from darkroom.v1 import parameters_pb2
from darkroom_client._enums import LoadingPhaseName, PreviewModeName, SafetyVerdictName
from darkroom_client._repr import ShortRepr

if TYPE_CHECKING:
    import PIL.Image


@dataclass(frozen=True, slots=True, repr=False)
class _Event(ShortRepr):
    request_id: str
    sequence: int  # increases from event to event; gaps are events that newer ones replaced before they were sent


@dataclass(frozen=True, slots=True, repr=False)
class Picture(_Event):
    """An event with an encoded picture. Shows itself in a notebook; goes into `edit` and controls as it is."""

    image_bytes: bytes  # the image file as sent by the server
    media_type: str  # for instance "image/png"
    width: int  # pixels
    height: int  # pixels

    @property
    def pil(self) -> "PIL.Image.Image":
        """The decoded picture, for Pillow. Each access decodes it again."""
        import PIL.Image

        picture: PIL.Image.Image = PIL.Image.open(BytesIO(self.image_bytes))
        picture.load()
        return picture

    @property
    def suffix(self) -> str:
        """The file name extension for `media_type`, for instance ".png"."""
        return {"image/jpeg": ".jpg"}.get(self.media_type, "." + self.media_type.rpartition("/")[2])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the image file as sent by the server, recipe included. Returns its path."""
        target = Path(path)
        target.write_bytes(self.image_bytes)
        return target

    def _repr_jpeg_(self) -> bytes | None:
        """For notebooks: the file, if it is a JPEG."""
        return self.image_bytes if self.media_type == "image/jpeg" else None

    def _repr_png_(self) -> bytes | None:
        """For notebooks: the file, converted unless it is a PNG; None for a JPEG."""
        if self.media_type in ("image/png", "image/jpeg"):
            return self.image_bytes if self.media_type == "image/png" else None
        buffer = BytesIO()
        self.pil.save(buffer, "PNG")
        return buffer.getvalue()


@dataclass(frozen=True, slots=True, repr=False)
class Accepted(_Event):
    """The request is valid; the job exists."""

    parameters: parameters_pb2.Parameters  # resolved: defaults filled in
    seeds: tuple[int, ...]  # by image index
    step_count: int  # denoising steps of each image
    preview: parameters_pb2.PreviewOptions  # resolved
    output: parameters_pb2.OutputOptions  # resolved
    estimated_wait_seconds: float | None = None  # until the first step; None: unknown
    estimated_end_seconds: float | None = None  # until the job is done; None: unknown


@dataclass(frozen=True, slots=True, repr=False)
class Queued(_Event):
    """The job waits for its turn."""

    position: int  # jobs ahead of this one
    estimated_wait_seconds: float | None  # until the first step; None: unknown
    estimated_end_seconds: float | None = None  # until the job is done; None: unknown
    restarts: int = 0  # how often it has begun again, because what ran it was lost


@dataclass(frozen=True, slots=True, repr=False)
class Loading(_Event):
    """The job waits while its model loads."""

    model: str
    component: str  # for instance "unet"; empty: the model as a whole
    phase: LoadingPhaseName | None  # None: unknown
    bytes_done: int  # of this phase
    bytes_total: int  # of this phase; 0: unknown


@dataclass(frozen=True, slots=True, repr=False)
class Step(_Event):
    """A denoising step of an image is done."""

    image_index: int
    step: int  # 1 to step_count
    step_count: int
    timestep: float  # training timestep at the step's start, usually 999 down to 0
    sigma: float | None  # noise level at the step's start; None: the scheduler has none
    elapsed_seconds: float  # since the start of the image's first step
    eta_seconds: float | None  # for the image's remaining steps; None: not known yet
    batch_rows: int  # batch size of the step; an image has two rows with guidance, one without


@dataclass(frozen=True, slots=True, repr=False)
class Preview(Picture):
    """The estimate of the clean image after `step`, as a small picture."""

    image_index: int
    step: int
    decoder: PreviewModeName | None  # "latent-rgb", "tiny-vae" or "full-vae"; None: unknown to this client


@dataclass(frozen=True, slots=True, repr=False)
class ControlImage(Picture):
    """A control map: as a ControlNet used it, or made by `preprocess`."""

    control_index: int
    preprocessor: str  # its name; empty: the map came with the request


@dataclass(frozen=True, slots=True, repr=False)
class Image(Picture):
    """A finished picture."""

    image_index: int
    seed: int
    safety: SafetyVerdictName | None  # None: not checked
    metadata: dict[str, Any]  # the picture's recipe as a JSON object


@dataclass(frozen=True, slots=True, repr=False)
class Timings(ShortRepr):
    """The durations of a job's phases. Seconds."""

    queue_seconds: float
    load_seconds: float
    encode_prompt_seconds: float
    denoise_seconds: float
    decode_seconds: float
    total_seconds: float


@dataclass(frozen=True, slots=True, repr=False)
class Completed(_Event):
    """The job is done: the last event."""

    timings: Timings
    warnings: tuple[str, ...]
    approximations: tuple[str, ...]  # a sentence for each approximation used, such as DeepCache


Event: TypeAlias = Accepted | Queued | Loading | Step | Preview | ControlImage | Image | Completed
