"""What a server offers, as `Client.models` and the other lists return it.

Records of the messages in `darkroom/v1/catalog_service.proto`, which describes every field; enum values are names, as
in events. JSON schemas are dictionaries; None: takes no options.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias

from darkroom.v1 import parameters_pb2
from darkroom_client._enums import (
    AssetChangeKindName,
    JobStateName,
    PreviewModeName,
    PriorityName,
    ResidencyName,
    SafetyPolicyName,
    SigmaScheduleName,
    TimestepSpacingName,
)

_Schema: TypeAlias = dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Device:
    """A device that pictures are made on."""

    id: str  # torch's, for instance "cuda:0"
    name: str
    memory_bytes: int  # 0: unknown
    threads: int  # of deterministic jobs on a CPU; 0: of another device
    deterministic_rows: int  # of the smallest batch of deterministic jobs
    instructions: str  # for instance "AVX512", or a GPU's compute capability


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What a request may ask for at most."""

    max_batch_rows: int
    max_images: int  # of a job
    max_inference_steps: int
    max_edge: int  # pixels
    max_pixels: int
    max_prompt_characters: int
    max_queued_jobs: int
    max_request_bytes: int
    chunk_bytes: int
    job_retention_seconds: float
    max_queued_jobs_per_client: int


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin at work in the server."""

    name: str  # its key in `extensions`
    version: str  # empty: unknown
    hooks: tuple[str, ...]
    extensions_schema: _Schema
    builtin: bool


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """Versions, devices, limits and plugins of a server."""

    version: str
    api_version: str
    torch_version: str
    diffusers_version: str
    devices: tuple[Device, ...]
    limits: ServerLimits
    plugins: tuple[Plugin, ...]
    default_model: str


@dataclass(frozen=True, slots=True)
class BatchLoad:
    """What has been evaluated of one model and size since the server was started."""

    model: str
    size: str  # the edge of a square of at least as many pixels, or "larger"
    steps: int  # evaluations, each of one batch
    rows: int  # of all of them
    step_seconds: float  # of all of them


@dataclass(frozen=True, slots=True)
class WeightsLoad:
    """A model or an asset in memory."""

    kind: str  # "model", "controlnet", "lora", "embedding"
    name: str
    model: str  # of an asset: the model that it is loaded for
    residency: ResidencyName | None
    bytes: int  # 0: unknown
    users: int  # jobs


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """What a server does at a moment; a cluster's is the sum of its replicas'."""

    queued_jobs: int
    running_jobs: int
    waiting_images: int  # that the engine has not begun
    active_images: int  # that it has begun
    open_streams: int
    batches: tuple[BatchLoad, ...]
    weights: tuple[WeightsLoad, ...]
    device_bytes: int  # of weights on devices
    parked_bytes: int  # of weights in the CPU's memory
    memory_budget_bytes: int | None  # of device_bytes; None: no limit


@dataclass(frozen=True, slots=True)
class Preset:
    """A model's set of values for requests; `preset` takes its name."""

    name: str
    description: str
    parameters: parameters_pb2.Parameters  # set are the values of the preset alone


@dataclass(frozen=True, slots=True)
class ModelReplica:
    """A model at one replica of a cluster."""

    replica: str  # the name
    residency: ResidencyName | None


@dataclass(frozen=True, slots=True)
class Model:
    """A model; `model` takes its name."""

    name: str
    description: str
    is_default: bool
    family: str  # for instance "sdxl"
    tasks: tuple[str, ...]
    prediction_type: str  # for instance "epsilon"; empty: unknown before it is loaded
    size_factor: int  # pixels; width and height are multiples of it
    default_width: int  # pixels
    default_height: int  # pixels
    min_size: int  # pixels
    max_size: int  # pixels
    default_scheduler: str
    default_num_inference_steps: int
    default_guidance_scale: float
    preview_modes: tuple[PreviewModeName, ...]
    default_preview_mode: PreviewModeName | None
    residency: ResidencyName | None
    weight_bytes: int  # 0: unknown before it is loaded
    device: str
    dtype: str
    safety_policy: SafetyPolicyName | None
    max_cache_interval: int
    max_pixels: int
    presets: tuple[Preset, ...]
    replicas: tuple[ModelReplica, ...]  # of a cluster; empty: it is none


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of generation; `task` takes its name."""

    name: str
    description: str
    rpcs: tuple[str, ...]  # "Generate", "Edit"
    plugin: str
    parameters_schema: _Schema  # of `extensions[plugin]`


@dataclass(frozen=True, slots=True)
class Scheduler:
    """A noise scheduler; `scheduler` takes its name or an alias."""

    name: str
    aliases: tuple[str, ...]
    diffusers_class: str
    description: str
    min_steps: int
    max_steps: int
    sigma_schedules: tuple[SigmaScheduleName, ...]
    timestep_spacings: tuple[TimestepSpacingName, ...]
    takes_eta: bool
    parameters_schema: _Schema  # of `SchedulerSpec.options`
    plugin: str


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA; `loras` takes its name."""

    name: str
    description: str
    family: str
    models: tuple[str, ...]  # that it fits
    components: tuple[str, ...]  # that it changes, for instance "unet"
    weight_bytes: int
    unusable: str  # why no model can use its file; empty: it can be used


@dataclass(frozen=True, slots=True)
class ControlNet:
    """A ControlNet; `ControlSpec.model` takes its name."""

    name: str
    description: str
    family: str
    models: tuple[str, ...]  # that it fits
    preprocessor: str  # that makes its maps; empty: unknown
    residency: ResidencyName | None
    weight_bytes: int
    unusable: str  # why no model can use its files; empty: it can be used


@dataclass(frozen=True, slots=True)
class Preprocessor:
    """A maker of control maps; `preprocess` and `ControlSpec.preprocessor` take its name."""

    name: str
    description: str
    parameters_schema: _Schema  # of `preprocessor_options`
    plugin: str


@dataclass(frozen=True, slots=True)
class AssetChange:
    """What became of a file in one of the server's folders."""

    kind: str  # "lora" or "embedding"
    name: str
    what: AssetChangeKindName | None  # None: unknown to this client
    detail: str  # why it waits, is refused or cannot be used; empty: nothing to say


@dataclass(frozen=True, slots=True)
class Job:
    """A job of the server's, active or kept."""

    request_id: str
    owner: str  # name of the token that started it; empty: unknown
    state: JobStateName | None  # None: unknown to this client
    kept: bool  # whether it can be watched
    task: str  # empty until it is checked
    model: str  # empty until it is checked
    prompt: str  # of one's own jobs
    num_images: int
    step_count: int  # of each picture
    step: int  # the last that is done, of the picture that is the furthest
    images_done: int
    position: int | None  # jobs ahead of it; None: unknown, or it no longer waits
    create_time: datetime  # times are in UTC
    start_time: datetime | None
    end_time: datetime | None
    expire_time: datetime | None  # until when it is kept
    error: str  # why it failed; empty: it did not
    error_reason: str
    priority: PriorityName | None = None  # None: it has ended
    estimated_start_time: datetime | None = None  # None: unknown, or it has started
    estimated_end_time: datetime | None = None  # None: unknown, or it has ended
    width: int = 0  # pixels; 0: it is still being checked, or, of an edit, its input's
    height: int = 0  # the same
    batch_rows: int = 0  # of the latest evaluation with it; 0: none yet
    step_seconds: float = 0.0  # of a step, on average; 0: none is done
    thumbnail: bytes = field(default=b"", repr=False)  # a small JPEG, from `Client.job`
