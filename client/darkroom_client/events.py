"""What a job tells of itself: the events that its stream yields.

The order is that of `darkroom.v1.ImageService`: `Accepted` first; `Queued` and `Loading` while it waits; `Step` 1 to N
of each image, with its `Preview`s; `Image` for each finished picture; `Completed` last.
"""

import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from darkroom.v1 import parameters_pb2
from darkroom_client._enums import LoadingPhaseName, PreviewModeName, SafetyVerdictName

if TYPE_CHECKING:
    import PIL.Image


@dataclass(frozen=True, slots=True)
class _Event:
    request_id: str
    sequence: int  # grows from event to event; gaps are previews that were left out


@dataclass(frozen=True, slots=True)
class _Picture(_Event):
    """An event with a picture in it."""

    image_bytes: bytes  # the file, exactly as the server sent it
    media_type: str  # for instance "image/png"
    width: int  # pixels
    height: int  # pixels

    @property
    def image(self) -> "PIL.Image.Image":
        """The picture, decoded anew at each access."""
        import PIL.Image

        picture: PIL.Image.Image = PIL.Image.open(BytesIO(self.image_bytes))
        picture.load()
        return picture

    @property
    def suffix(self) -> str:
        """The file name's ending for this kind of file, for instance ".png"."""
        return {"image/jpeg": ".jpg"}.get(self.media_type, "." + self.media_type.rpartition("/")[2])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the file exactly as the server sent it, its recipe included, and returns its path."""
        target = Path(path)
        target.write_bytes(self.image_bytes)
        return target


@dataclass(frozen=True, slots=True)
class Accepted(_Event):
    """The request is valid and its job exists."""

    parameters: parameters_pb2.Parameters  # resolved: with every default filled in
    seeds: tuple[int, ...]  # by image index
    step_count: int  # steps that each image will take
    preview: parameters_pb2.PreviewOptions  # resolved
    output: parameters_pb2.OutputOptions  # resolved


@dataclass(frozen=True, slots=True)
class Queued(_Event):
    """The job waits for its turn."""

    position: int  # jobs before this one
    estimated_wait_seconds: float | None  # None: not known


@dataclass(frozen=True, slots=True)
class Loading(_Event):
    """The job waits for a model that is being loaded."""

    model: str
    component: str  # for instance "unet"; empty: the model as a whole
    phase: LoadingPhaseName | None  # None: not known
    bytes_done: int
    bytes_total: int  # 0: not known


@dataclass(frozen=True, slots=True)
class Step(_Event):
    """A denoising step of an image is done."""

    image_index: int
    step: int  # 1 to step_count
    step_count: int
    timestep: float
    sigma: float | None  # None: the scheduler has none
    elapsed_seconds: float  # since the image's first step began
    eta_seconds: float | None  # None: not known yet
    batch_rows: int  # rows of all jobs that shared the step


@dataclass(frozen=True, slots=True)
class Preview(_Picture):
    """A small picture of the clean image as the model sees it after `step`."""

    image_index: int
    step: int
    decoder: PreviewModeName | None  # "latent-rgb", "tiny-vae" or "full-vae"; None: a mode unknown to this client


@dataclass(frozen=True, slots=True)
class ControlImage(_Picture):
    """A control map, as it was used or as a preprocessor made it."""

    control_index: int
    preprocessor: str  # empty: the map came with the request


@dataclass(frozen=True, slots=True)
class Image(_Picture):
    """A finished picture."""

    image_index: int
    seed: int
    safety: SafetyVerdictName | None  # None: the safety checker did not look
    metadata: dict[str, Any]  # the recipe that the picture carries


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a job's time went. Seconds."""

    queue_seconds: float
    load_seconds: float
    encode_prompt_seconds: float
    denoise_seconds: float
    decode_seconds: float
    total_seconds: float


@dataclass(frozen=True, slots=True)
class Completed(_Event):
    """The job is done."""

    timings: Timings
    warnings: tuple[str, ...]
    approximations: tuple[str, ...]  # sentences that name what makes the pictures cheaper, but different


Event: TypeAlias = Accepted | Queued | Loading | Step | Preview | ControlImage | Image | Completed
