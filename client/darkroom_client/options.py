"""What a request can say, typed: the keywords of `generate` and `edit`, and the small records that some of them take.

Names, units, ranges and defaults are those of the protos (`darkroom/v1/parameters.proto`); what is left out, or None,
is unset there, so that the server's default holds.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, Union

from darkroom.v1 import parameters_pb2
from darkroom_client._enums import (
    DisconnectPolicyName,
    ImageFormatName,
    PreviewModeName,
    PromptSyntaxName,
    ResizeModeName,
    SigmaScheduleName,
    TimestepSpacingName,
)
from darkroom_client.recipes import Recipe

if TYPE_CHECKING:
    import PIL.Image

__all__ = [
    "ConnectionOptions",
    "ControlSpec",
    "DisconnectPolicyName",
    "ImageFormatName",
    "ImageLike",
    "JobOptions",
    "LoraSpec",
    "OutputOptions",
    "ParameterOptions",
    "PreviewModeName",
    "PreviewOptions",
    "PromptSyntaxName",
    "ResizeModeName",
    "SchedulerSpec",
    "SigmaScheduleName",
    "SizeConditioning",
    "TimestepSpacingName",
]

# An encoded file, its path, or a picture.
ImageLike: TypeAlias = Union[bytes, str, os.PathLike[str], "PIL.Image.Image"]


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
    weight: float | None = None

    @classmethod
    def parse(cls, text: str) -> "LoraSpec":
        """A LoRA out of NAME or NAME:WEIGHT; names hold no colon.

        :raises ValueError: when the weight is no number.
        """
        name, colon, weight = text.partition(":")
        try:
            return cls(name, float(weight) if colon else None)
        except ValueError:
            raise ValueError(f"{text!r} is not NAME or NAME:WEIGHT") from None


@dataclass(frozen=True, slots=True)
class ControlSpec:
    """A ControlNet with its map, or with a picture and the preprocessor that makes the map from it."""

    model: str
    image: ImageLike
    preprocessor: str | None = None
    preprocessor_options: Mapping[str, Any] | None = None
    scale: float | None = None
    start: float | None = None
    end: float | None = None
    guess_mode: bool | None = None
    echo_map: bool | None = None


@dataclass(frozen=True, slots=True)
class SizeConditioning:
    """What SDXL models are told about the sizes and the crop of the picture to imitate. Pixels."""

    original_width: int | None = None
    original_height: int | None = None
    crop_left: int | None = None
    crop_top: int | None = None
    target_width: int | None = None
    target_height: int | None = None


@dataclass(frozen=True, slots=True)
class PreviewOptions:
    """Which previews to send."""

    mode: PreviewModeName | None = None
    every_n_steps: int | None = None
    min_interval_seconds: float | None = None
    max_edge: int | None = None
    format: ImageFormatName | None = None


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """How finished pictures are encoded."""

    format: ImageFormatName | None = None
    quality: int | None = None
    embed_metadata: bool | None = None


class ConnectionOptions(TypedDict, total=False):
    """The keywords of `Client` and `AsyncClient`."""

    token: str | None  # what the server asks for as a bearer token; None: DARKROOM_TOKEN, else none
    root_certificate: str | os.PathLike[str] | bytes | None  # PEM file, or its bytes, of who signed the server's
    tls: bool  # speak TLS, by default trusting gRPC's own list; a root certificate implies it


class ParameterOptions(TypedDict, total=False):
    """The keywords that fill `darkroom.v1.Parameters`."""

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
    extensions: Mapping[str, Mapping[str, Any]] | None  # by the plugin's name


class JobOptions(ParameterOptions, total=False):
    """The keywords of `generate` and `edit`."""

    parameters: parameters_pb2.Parameters | Recipe | Mapping[str, Any] | None  # what the other keywords override
    preview: PreviewModeName | PreviewOptions | parameters_pb2.PreviewOptions | None
    output: ImageFormatName | OutputOptions | parameters_pb2.OutputOptions | None
    request_id: str | None  # None: the client makes one
    disconnect_policy: DisconnectPolicyName | None
    deterministic: bool | None
    timeout: float | None  # seconds until the job ends with DeadlineExceeded
