"""The keywords of `generate` and `edit`, and the records that some of them take.

Names, units, ranges and defaults are those of the protos (`darkroom/v1/parameters.proto`). Omitted values and None take
the server's defaults.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeAlias, TypedDict, Union

from darkroom.v1 import parameters_pb2
from darkroom_client._enums import (
    DisconnectPolicyName,
    ImageFormatName,
    PreviewModeName,
    PriorityName,
    PromptSyntaxName,
    ResizeModeName,
    SigmaScheduleName,
    TimestepSpacingName,
    UpscalerName,
)
from darkroom_client._repr import ShortRepr
from darkroom_client.events import Picture
from darkroom_client.recipes import Recipe

if TYPE_CHECKING:
    import PIL.Image

__all__ = [
    "ConnectionOptions",
    "ControlSpec",
    "DisconnectPolicyName",
    "HiresFix",
    "ImageFormatName",
    "ImageLike",
    "JobOptions",
    "LoraSpec",
    "OutputOptions",
    "ParameterOptions",
    "PreviewModeName",
    "PreviewOptions",
    "PriorityName",
    "PromptSyntaxName",
    "ResizeModeName",
    "SchedulerSpec",
    "SigmaScheduleName",
    "SizeConditioning",
    "TimestepSpacingName",
    "UpscalerName",
]


class _Array(Protocol):
    """A NumPy array."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...


# The bytes of an image file, its path, a file opened in binary mode, a picture from a stream, a PIL image, or a NumPy
# array: (height, width) or (height, width, 3 or 4), uint8, bool, or float from 0 to 1.
ImageLike: TypeAlias = Union[
    bytes, bytearray, memoryview, str, os.PathLike[str], IO[bytes], Picture, "PIL.Image.Image", _Array
]


@dataclass(frozen=True, slots=True)
class SchedulerSpec:
    """A noise scheduler with its options."""

    name: str | None = None
    sigma_schedule: SigmaScheduleName | None = None
    timestep_spacing: TimestepSpacingName | None = None
    options: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """A LoRA with its weight."""

    name: str
    weight: float | None = None  # -10 to 10

    @classmethod
    def parse(cls, text: str) -> "LoraSpec":
        """Parses NAME or NAME:WEIGHT. Names contain no colon.

        :raises ValueError: if the weight is not a number.
        """
        name, colon, weight = text.partition(":")
        try:
            return cls(name, float(weight) if colon else None)
        except ValueError:
            raise ValueError(f"{text!r} is not NAME or NAME:WEIGHT") from None


@dataclass(frozen=True, slots=True, repr=False)
class ControlSpec(ShortRepr):
    """A ControlNet with its control map, or with a picture and the preprocessor that makes the map of it."""

    model: str
    image: ImageLike
    preprocessor: str | None = None  # None: `image` is the control map
    preprocessor_options: Mapping[str, Any] | None = None
    scale: float | None = None  # conditioning scale, 0 to 10
    start: float | None = None  # fraction of the steps, 0 to 1
    end: float | None = None  # fraction of the steps, 0 to 1
    guess_mode: bool | None = None
    echo_map: bool | None = None  # return the map as a ControlImage event


@dataclass(frozen=True, slots=True)
class SizeConditioning:
    """SDXL's conditioning on original size, crop offset and target size. Pixels."""

    original_width: int | None = None
    original_height: int | None = None
    crop_left: int | None = None
    crop_top: int | None = None
    target_width: int | None = None
    target_height: int | None = None


@dataclass(frozen=True, slots=True)
class HiresFix:
    """A second stage: the picture upscaled, and denoised again at its new size."""

    factor: float | None = None  # 1 to 8; None: by width or height, else 2
    width: int | None = None  # pixels
    height: int | None = None  # pixels
    upscaler: UpscalerName | None = None
    strength: float | None = None  # fraction of the steps that run, 0 to 1
    num_inference_steps: int | None = None  # None: as the first stage


@dataclass(frozen=True, slots=True)
class PreviewOptions:
    """How and when previews are made."""

    mode: PreviewModeName | None = None
    every_n_steps: int | None = None
    min_interval_seconds: float | None = None  # between two previews of an image
    max_edge: int | None = None  # pixels
    format: ImageFormatName | None = None


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """How finished pictures are encoded."""

    format: ImageFormatName | None = None
    quality: int | None = None  # of JPEG and WebP, 1 to 100
    embed_metadata: bool | None = None  # write the recipe into the file


class ConnectionOptions(TypedDict, total=False):
    """The keywords of `Client` and `AsyncClient`."""

    token: str | None  # bearer token; None: DARKROOM_TOKEN, else no token
    root_certificate: str | os.PathLike[str] | bytes | None  # PEM of the server's CA: path or bytes; implies TLS
    client_certificate: str | os.PathLike[str] | bytes | None  # PEM, where the server asks for one; implies TLS
    client_key: str | os.PathLike[str] | bytes | None  # PEM of its private key
    tls: bool  # use TLS; without a root certificate, with gRPC's default CAs
    # How often a call that the server cannot take yet (QueueFull, Unavailable) is made again, before its first event
    # and within its `timeout`; None: as long as the `timeout` allows, or 3 times without one; 0: never.
    retries: int | None


class ParameterOptions(TypedDict, total=False):
    """The keywords for fields of `darkroom.v1.Parameters`."""

    task: str | None
    model: str | None
    negative_prompt: str | None
    prompt_2: str | None
    negative_prompt_2: str | None
    prompt_syntax: PromptSyntaxName | None
    width: int | None
    height: int | None
    num_images: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    guidance_rescale: float | None
    guidance_start: float | None
    guidance_end: float | None
    cache_interval: int | None
    clip_skip: int | None
    eta: float | None
    seed: int | None
    scheduler: str | SchedulerSpec | Mapping[str, Any] | parameters_pb2.SchedulerSpec | None
    loras: Mapping[str, float] | Sequence[str | LoraSpec | parameters_pb2.LoraSpec] | None  # "name", "name:0.8", …
    controls: Sequence[ControlSpec | parameters_pb2.ControlSpec] | None
    size_conditioning: SizeConditioning | parameters_pb2.SizeConditioning | None
    extensions: Mapping[str, Mapping[str, Any]] | None  # by plugin name
    hires_fix: (
        float | HiresFix | Mapping[str, Any] | parameters_pb2.HiresFix | None
    )  # 2.0: twice the size; not for edits
    preset: str | None  # of the model: values for what is not set here


class JobOptions(ParameterOptions, total=False):
    """The keywords of `generate` and `edit`."""

    parameters: parameters_pb2.Parameters | Recipe | Mapping[str, Any] | None  # base, overridden by other keywords
    preview: PreviewModeName | PreviewOptions | parameters_pb2.PreviewOptions | None
    output: ImageFormatName | OutputOptions | parameters_pb2.OutputOptions | None
    request_id: str | None  # None: a random one
    disconnect_policy: DisconnectPolicyName | None
    # True: the same as disconnect_policy="keep". The job goes on without its client, and the stream is taken up again
    # when the connection or the server is lost, for 5 minutes, or within the `timeout`; `retries=0` of the client: not.
    keep: bool | None
    deterministic: bool | None
    priority: PriorityName | None  # where jobs compete; "high" needs an operator's token. None: "normal"
    # Seconds above 0; then the job ends with DeadlineExceeded. One that would take longer by the server's estimate is
    # refused at once, with DeadlineUnreachable or DeadlineTooShort. None, infinity: no limit.
    timeout: float | None
