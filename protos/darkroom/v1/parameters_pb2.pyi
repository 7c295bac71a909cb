from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Upscaler(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UPSCALER_UNSPECIFIED: _ClassVar[Upscaler]
    UPSCALER_LATENT_NEAREST: _ClassVar[Upscaler]
    UPSCALER_LATENT_BILINEAR: _ClassVar[Upscaler]
    UPSCALER_LATENT_BICUBIC: _ClassVar[Upscaler]
    UPSCALER_PIXEL_BICUBIC: _ClassVar[Upscaler]
    UPSCALER_PIXEL_LANCZOS: _ClassVar[Upscaler]

class SigmaSchedule(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SIGMA_SCHEDULE_UNSPECIFIED: _ClassVar[SigmaSchedule]
    SIGMA_SCHEDULE_DEFAULT: _ClassVar[SigmaSchedule]
    SIGMA_SCHEDULE_KARRAS: _ClassVar[SigmaSchedule]
    SIGMA_SCHEDULE_EXPONENTIAL: _ClassVar[SigmaSchedule]
    SIGMA_SCHEDULE_BETA: _ClassVar[SigmaSchedule]

class TimestepSpacing(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIMESTEP_SPACING_UNSPECIFIED: _ClassVar[TimestepSpacing]
    TIMESTEP_SPACING_LINSPACE: _ClassVar[TimestepSpacing]
    TIMESTEP_SPACING_LEADING: _ClassVar[TimestepSpacing]
    TIMESTEP_SPACING_TRAILING: _ClassVar[TimestepSpacing]

class PreviewMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PREVIEW_MODE_UNSPECIFIED: _ClassVar[PreviewMode]
    PREVIEW_MODE_OFF: _ClassVar[PreviewMode]
    PREVIEW_MODE_LATENT_RGB: _ClassVar[PreviewMode]
    PREVIEW_MODE_TINY_VAE: _ClassVar[PreviewMode]
    PREVIEW_MODE_FULL_VAE: _ClassVar[PreviewMode]

class ImageFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_FORMAT_UNSPECIFIED: _ClassVar[ImageFormat]
    IMAGE_FORMAT_PNG: _ClassVar[ImageFormat]
    IMAGE_FORMAT_JPEG: _ClassVar[ImageFormat]
    IMAGE_FORMAT_WEBP: _ClassVar[ImageFormat]

class PromptSyntax(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROMPT_SYNTAX_UNSPECIFIED: _ClassVar[PromptSyntax]
    PROMPT_SYNTAX_PLAIN: _ClassVar[PromptSyntax]
    PROMPT_SYNTAX_WEIGHTED: _ClassVar[PromptSyntax]

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_LOW: _ClassVar[Priority]
    PRIORITY_NORMAL: _ClassVar[Priority]
    PRIORITY_HIGH: _ClassVar[Priority]

class DisconnectPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DISCONNECT_POLICY_UNSPECIFIED: _ClassVar[DisconnectPolicy]
    DISCONNECT_POLICY_CANCEL: _ClassVar[DisconnectPolicy]
    DISCONNECT_POLICY_KEEP: _ClassVar[DisconnectPolicy]
UPSCALER_UNSPECIFIED: Upscaler
UPSCALER_LATENT_NEAREST: Upscaler
UPSCALER_LATENT_BILINEAR: Upscaler
UPSCALER_LATENT_BICUBIC: Upscaler
UPSCALER_PIXEL_BICUBIC: Upscaler
UPSCALER_PIXEL_LANCZOS: Upscaler
SIGMA_SCHEDULE_UNSPECIFIED: SigmaSchedule
SIGMA_SCHEDULE_DEFAULT: SigmaSchedule
SIGMA_SCHEDULE_KARRAS: SigmaSchedule
SIGMA_SCHEDULE_EXPONENTIAL: SigmaSchedule
SIGMA_SCHEDULE_BETA: SigmaSchedule
TIMESTEP_SPACING_UNSPECIFIED: TimestepSpacing
TIMESTEP_SPACING_LINSPACE: TimestepSpacing
TIMESTEP_SPACING_LEADING: TimestepSpacing
TIMESTEP_SPACING_TRAILING: TimestepSpacing
PREVIEW_MODE_UNSPECIFIED: PreviewMode
PREVIEW_MODE_OFF: PreviewMode
PREVIEW_MODE_LATENT_RGB: PreviewMode
PREVIEW_MODE_TINY_VAE: PreviewMode
PREVIEW_MODE_FULL_VAE: PreviewMode
IMAGE_FORMAT_UNSPECIFIED: ImageFormat
IMAGE_FORMAT_PNG: ImageFormat
IMAGE_FORMAT_JPEG: ImageFormat
IMAGE_FORMAT_WEBP: ImageFormat
PROMPT_SYNTAX_UNSPECIFIED: PromptSyntax
PROMPT_SYNTAX_PLAIN: PromptSyntax
PROMPT_SYNTAX_WEIGHTED: PromptSyntax
PRIORITY_UNSPECIFIED: Priority
PRIORITY_LOW: Priority
PRIORITY_NORMAL: Priority
PRIORITY_HIGH: Priority
DISCONNECT_POLICY_UNSPECIFIED: DisconnectPolicy
DISCONNECT_POLICY_CANCEL: DisconnectPolicy
DISCONNECT_POLICY_KEEP: DisconnectPolicy

class Parameters(_message.Message):
    __slots__ = ("task", "model", "prompt", "negative_prompt", "prompt_2", "negative_prompt_2", "prompt_syntax", "width", "height", "num_images", "num_inference_steps", "guidance_scale", "guidance_rescale", "guidance_start", "guidance_end", "cache_interval", "clip_skip", "eta", "seed", "scheduler", "loras", "controls", "size_conditioning", "extensions", "preset", "hires_fix")
    class ExtensionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _struct_pb2.Struct
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...
    TASK_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_2_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_2_FIELD_NUMBER: _ClassVar[int]
    PROMPT_SYNTAX_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    NUM_IMAGES_FIELD_NUMBER: _ClassVar[int]
    NUM_INFERENCE_STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_RESCALE_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_START_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_END_FIELD_NUMBER: _ClassVar[int]
    CACHE_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    CLIP_SKIP_FIELD_NUMBER: _ClassVar[int]
    ETA_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SCHEDULER_FIELD_NUMBER: _ClassVar[int]
    LORAS_FIELD_NUMBER: _ClassVar[int]
    CONTROLS_FIELD_NUMBER: _ClassVar[int]
    SIZE_CONDITIONING_FIELD_NUMBER: _ClassVar[int]
    EXTENSIONS_FIELD_NUMBER: _ClassVar[int]
    PRESET_FIELD_NUMBER: _ClassVar[int]
    HIRES_FIX_FIELD_NUMBER: _ClassVar[int]
    task: str
    model: str
    prompt: str
    negative_prompt: str
    prompt_2: str
    negative_prompt_2: str
    prompt_syntax: PromptSyntax
    width: int
    height: int
    num_images: int
    num_inference_steps: int
    guidance_scale: float
    guidance_rescale: float
    guidance_start: float
    guidance_end: float
    cache_interval: int
    clip_skip: int
    eta: float
    seed: int
    scheduler: SchedulerSpec
    loras: _containers.RepeatedCompositeFieldContainer[LoraSpec]
    controls: _containers.RepeatedCompositeFieldContainer[ControlSpec]
    size_conditioning: SizeConditioning
    extensions: _containers.MessageMap[str, _struct_pb2.Struct]
    preset: str
    hires_fix: HiresFix
    def __init__(self, task: _Optional[str] = ..., model: _Optional[str] = ..., prompt: _Optional[str] = ..., negative_prompt: _Optional[str] = ..., prompt_2: _Optional[str] = ..., negative_prompt_2: _Optional[str] = ..., prompt_syntax: _Optional[_Union[PromptSyntax, str]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., num_images: _Optional[int] = ..., num_inference_steps: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., guidance_rescale: _Optional[float] = ..., guidance_start: _Optional[float] = ..., guidance_end: _Optional[float] = ..., cache_interval: _Optional[int] = ..., clip_skip: _Optional[int] = ..., eta: _Optional[float] = ..., seed: _Optional[int] = ..., scheduler: _Optional[_Union[SchedulerSpec, _Mapping]] = ..., loras: _Optional[_Iterable[_Union[LoraSpec, _Mapping]]] = ..., controls: _Optional[_Iterable[_Union[ControlSpec, _Mapping]]] = ..., size_conditioning: _Optional[_Union[SizeConditioning, _Mapping]] = ..., extensions: _Optional[_Mapping[str, _struct_pb2.Struct]] = ..., preset: _Optional[str] = ..., hires_fix: _Optional[_Union[HiresFix, _Mapping]] = ...) -> None: ...

class HiresFix(_message.Message):
    __slots__ = ("factor", "width", "height", "upscaler", "strength", "num_inference_steps")
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    UPSCALER_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    NUM_INFERENCE_STEPS_FIELD_NUMBER: _ClassVar[int]
    factor: float
    width: int
    height: int
    upscaler: Upscaler
    strength: float
    num_inference_steps: int
    def __init__(self, factor: _Optional[float] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., upscaler: _Optional[_Union[Upscaler, str]] = ..., strength: _Optional[float] = ..., num_inference_steps: _Optional[int] = ...) -> None: ...

class SchedulerSpec(_message.Message):
    __slots__ = ("name", "sigma_schedule", "timestep_spacing", "options")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIGMA_SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    TIMESTEP_SPACING_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    sigma_schedule: SigmaSchedule
    timestep_spacing: TimestepSpacing
    options: _struct_pb2.Struct
    def __init__(self, name: _Optional[str] = ..., sigma_schedule: _Optional[_Union[SigmaSchedule, str]] = ..., timestep_spacing: _Optional[_Union[TimestepSpacing, str]] = ..., options: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class LoraSpec(_message.Message):
    __slots__ = ("name", "weight")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    name: str
    weight: float
    def __init__(self, name: _Optional[str] = ..., weight: _Optional[float] = ...) -> None: ...

class ControlSpec(_message.Message):
    __slots__ = ("model", "image", "preprocessor", "preprocessor_options", "scale", "start", "end", "guess_mode", "echo_map")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSOR_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSOR_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    GUESS_MODE_FIELD_NUMBER: _ClassVar[int]
    ECHO_MAP_FIELD_NUMBER: _ClassVar[int]
    model: str
    image: bytes
    preprocessor: str
    preprocessor_options: _struct_pb2.Struct
    scale: float
    start: float
    end: float
    guess_mode: bool
    echo_map: bool
    def __init__(self, model: _Optional[str] = ..., image: _Optional[bytes] = ..., preprocessor: _Optional[str] = ..., preprocessor_options: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., scale: _Optional[float] = ..., start: _Optional[float] = ..., end: _Optional[float] = ..., guess_mode: bool = ..., echo_map: bool = ...) -> None: ...

class SizeConditioning(_message.Message):
    __slots__ = ("original_width", "original_height", "crop_left", "crop_top", "target_width", "target_height")
    ORIGINAL_WIDTH_FIELD_NUMBER: _ClassVar[int]
    ORIGINAL_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    CROP_LEFT_FIELD_NUMBER: _ClassVar[int]
    CROP_TOP_FIELD_NUMBER: _ClassVar[int]
    TARGET_WIDTH_FIELD_NUMBER: _ClassVar[int]
    TARGET_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    original_width: int
    original_height: int
    crop_left: int
    crop_top: int
    target_width: int
    target_height: int
    def __init__(self, original_width: _Optional[int] = ..., original_height: _Optional[int] = ..., crop_left: _Optional[int] = ..., crop_top: _Optional[int] = ..., target_width: _Optional[int] = ..., target_height: _Optional[int] = ...) -> None: ...

class PreviewOptions(_message.Message):
    __slots__ = ("mode", "every_n_steps", "min_interval_seconds", "max_edge", "format")
    MODE_FIELD_NUMBER: _ClassVar[int]
    EVERY_N_STEPS_FIELD_NUMBER: _ClassVar[int]
    MIN_INTERVAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MAX_EDGE_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    mode: PreviewMode
    every_n_steps: int
    min_interval_seconds: float
    max_edge: int
    format: ImageFormat
    def __init__(self, mode: _Optional[_Union[PreviewMode, str]] = ..., every_n_steps: _Optional[int] = ..., min_interval_seconds: _Optional[float] = ..., max_edge: _Optional[int] = ..., format: _Optional[_Union[ImageFormat, str]] = ...) -> None: ...

class OutputOptions(_message.Message):
    __slots__ = ("format", "quality", "embed_metadata")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    EMBED_METADATA_FIELD_NUMBER: _ClassVar[int]
    format: ImageFormat
    quality: int
    embed_metadata: bool
    def __init__(self, format: _Optional[_Union[ImageFormat, str]] = ..., quality: _Optional[int] = ..., embed_metadata: bool = ...) -> None: ...
