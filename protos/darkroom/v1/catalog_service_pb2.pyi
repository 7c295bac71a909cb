from darkroom.v1 import events_pb2 as _events_pb2
from darkroom.v1 import parameters_pb2 as _parameters_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Residency(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESIDENCY_UNSPECIFIED: _ClassVar[Residency]
    RESIDENCY_ABSENT: _ClassVar[Residency]
    RESIDENCY_LOADING: _ClassVar[Residency]
    RESIDENCY_PARKED: _ClassVar[Residency]
    RESIDENCY_RESIDENT: _ClassVar[Residency]

class SafetyPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SAFETY_POLICY_UNSPECIFIED: _ClassVar[SafetyPolicy]
    SAFETY_POLICY_OFF: _ClassVar[SafetyPolicy]
    SAFETY_POLICY_FLAG: _ClassVar[SafetyPolicy]
    SAFETY_POLICY_BLOCK: _ClassVar[SafetyPolicy]

class AssetChangeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ASSET_CHANGE_KIND_UNSPECIFIED: _ClassVar[AssetChangeKind]
    ASSET_CHANGE_KIND_ADDED: _ClassVar[AssetChangeKind]
    ASSET_CHANGE_KIND_REMOVED: _ClassVar[AssetChangeKind]
    ASSET_CHANGE_KIND_WAITING: _ClassVar[AssetChangeKind]
    ASSET_CHANGE_KIND_REFUSED: _ClassVar[AssetChangeKind]
RESIDENCY_UNSPECIFIED: Residency
RESIDENCY_ABSENT: Residency
RESIDENCY_LOADING: Residency
RESIDENCY_PARKED: Residency
RESIDENCY_RESIDENT: Residency
SAFETY_POLICY_UNSPECIFIED: SafetyPolicy
SAFETY_POLICY_OFF: SafetyPolicy
SAFETY_POLICY_FLAG: SafetyPolicy
SAFETY_POLICY_BLOCK: SafetyPolicy
ASSET_CHANGE_KIND_UNSPECIFIED: AssetChangeKind
ASSET_CHANGE_KIND_ADDED: AssetChangeKind
ASSET_CHANGE_KIND_REMOVED: AssetChangeKind
ASSET_CHANGE_KIND_WAITING: AssetChangeKind
ASSET_CHANGE_KIND_REFUSED: AssetChangeKind

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "api_version", "torch_version", "diffusers_version", "devices", "limits", "plugins", "default_model")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    API_VERSION_FIELD_NUMBER: _ClassVar[int]
    TORCH_VERSION_FIELD_NUMBER: _ClassVar[int]
    DIFFUSERS_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    PLUGINS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_MODEL_FIELD_NUMBER: _ClassVar[int]
    version: str
    api_version: str
    torch_version: str
    diffusers_version: str
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    limits: ServerLimits
    plugins: _containers.RepeatedCompositeFieldContainer[Plugin]
    default_model: str
    def __init__(self, version: _Optional[str] = ..., api_version: _Optional[str] = ..., torch_version: _Optional[str] = ..., diffusers_version: _Optional[str] = ..., devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ..., limits: _Optional[_Union[ServerLimits, _Mapping]] = ..., plugins: _Optional[_Iterable[_Union[Plugin, _Mapping]]] = ..., default_model: _Optional[str] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("id", "name", "memory_bytes", "threads", "deterministic_rows", "instructions")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    DETERMINISTIC_ROWS_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTIONS_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    memory_bytes: int
    threads: int
    deterministic_rows: int
    instructions: str
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., threads: _Optional[int] = ..., deterministic_rows: _Optional[int] = ..., instructions: _Optional[str] = ...) -> None: ...

class ServerLimits(_message.Message):
    __slots__ = ("max_batch_rows", "max_images", "max_inference_steps", "max_edge", "max_pixels", "max_prompt_characters", "max_queued_jobs", "max_request_bytes", "chunk_bytes", "job_retention_seconds", "max_queued_jobs_per_client")
    MAX_BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_INFERENCE_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_EDGE_FIELD_NUMBER: _ClassVar[int]
    MAX_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_PROMPT_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_JOBS_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    JOB_RETENTION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_JOBS_PER_CLIENT_FIELD_NUMBER: _ClassVar[int]
    max_batch_rows: int
    max_images: int
    max_inference_steps: int
    max_edge: int
    max_pixels: int
    max_prompt_characters: int
    max_queued_jobs: int
    max_request_bytes: int
    chunk_bytes: int
    job_retention_seconds: float
    max_queued_jobs_per_client: int
    def __init__(self, max_batch_rows: _Optional[int] = ..., max_images: _Optional[int] = ..., max_inference_steps: _Optional[int] = ..., max_edge: _Optional[int] = ..., max_pixels: _Optional[int] = ..., max_prompt_characters: _Optional[int] = ..., max_queued_jobs: _Optional[int] = ..., max_request_bytes: _Optional[int] = ..., chunk_bytes: _Optional[int] = ..., job_retention_seconds: _Optional[float] = ..., max_queued_jobs_per_client: _Optional[int] = ...) -> None: ...

class Plugin(_message.Message):
    __slots__ = ("name", "version", "hooks", "extensions_schema", "builtin")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HOOKS_FIELD_NUMBER: _ClassVar[int]
    EXTENSIONS_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    BUILTIN_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    hooks: _containers.RepeatedScalarFieldContainer[str]
    extensions_schema: _struct_pb2.Struct
    builtin: bool
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., hooks: _Optional[_Iterable[str]] = ..., extensions_schema: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., builtin: bool = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "description", "is_default", "family", "tasks", "prediction_type", "size_factor", "default_width", "default_height", "min_size", "max_size", "default_scheduler", "default_num_inference_steps", "default_guidance_scale", "preview_modes", "default_preview_mode", "residency", "weight_bytes", "device", "dtype", "safety_policy", "max_cache_interval", "max_pixels", "presets", "replicas")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_TYPE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FACTOR_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_WIDTH_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    MIN_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_SIZE_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_SCHEDULER_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_NUM_INFERENCE_STEPS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_MODES_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_PREVIEW_MODE_FIELD_NUMBER: _ClassVar[int]
    RESIDENCY_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SAFETY_POLICY_FIELD_NUMBER: _ClassVar[int]
    MAX_CACHE_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    MAX_PIXELS_FIELD_NUMBER: _ClassVar[int]
    PRESETS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    is_default: bool
    family: str
    tasks: _containers.RepeatedScalarFieldContainer[str]
    prediction_type: str
    size_factor: int
    default_width: int
    default_height: int
    min_size: int
    max_size: int
    default_scheduler: str
    default_num_inference_steps: int
    default_guidance_scale: float
    preview_modes: _containers.RepeatedScalarFieldContainer[_parameters_pb2.PreviewMode]
    default_preview_mode: _parameters_pb2.PreviewMode
    residency: Residency
    weight_bytes: int
    device: str
    dtype: str
    safety_policy: SafetyPolicy
    max_cache_interval: int
    max_pixels: int
    presets: _containers.RepeatedCompositeFieldContainer[Preset]
    replicas: _containers.RepeatedCompositeFieldContainer[ModelReplica]
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., is_default: bool = ..., family: _Optional[str] = ..., tasks: _Optional[_Iterable[str]] = ..., prediction_type: _Optional[str] = ..., size_factor: _Optional[int] = ..., default_width: _Optional[int] = ..., default_height: _Optional[int] = ..., min_size: _Optional[int] = ..., max_size: _Optional[int] = ..., default_scheduler: _Optional[str] = ..., default_num_inference_steps: _Optional[int] = ..., default_guidance_scale: _Optional[float] = ..., preview_modes: _Optional[_Iterable[_Union[_parameters_pb2.PreviewMode, str]]] = ..., default_preview_mode: _Optional[_Union[_parameters_pb2.PreviewMode, str]] = ..., residency: _Optional[_Union[Residency, str]] = ..., weight_bytes: _Optional[int] = ..., device: _Optional[str] = ..., dtype: _Optional[str] = ..., safety_policy: _Optional[_Union[SafetyPolicy, str]] = ..., max_cache_interval: _Optional[int] = ..., max_pixels: _Optional[int] = ..., presets: _Optional[_Iterable[_Union[Preset, _Mapping]]] = ..., replicas: _Optional[_Iterable[_Union[ModelReplica, _Mapping]]] = ...) -> None: ...

class ModelReplica(_message.Message):
    __slots__ = ("replica", "residency")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    RESIDENCY_FIELD_NUMBER: _ClassVar[int]
    replica: str
    residency: Residency
    def __init__(self, replica: _Optional[str] = ..., residency: _Optional[_Union[Residency, str]] = ...) -> None: ...

class Preset(_message.Message):
    __slots__ = ("name", "description", "parameters")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    parameters: _parameters_pb2.Parameters
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., parameters: _Optional[_Union[_parameters_pb2.Parameters, _Mapping]] = ...) -> None: ...

class ListTasksRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListTasksResponse(_message.Message):
    __slots__ = ("tasks",)
    TASKS_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[Task]
    def __init__(self, tasks: _Optional[_Iterable[_Union[Task, _Mapping]]] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("name", "description", "rpcs", "plugin", "parameters_schema")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    RPCS_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    rpcs: _containers.RepeatedScalarFieldContainer[str]
    plugin: str
    parameters_schema: _struct_pb2.Struct
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., rpcs: _Optional[_Iterable[str]] = ..., plugin: _Optional[str] = ..., parameters_schema: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class ListSchedulersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListSchedulersResponse(_message.Message):
    __slots__ = ("schedulers",)
    SCHEDULERS_FIELD_NUMBER: _ClassVar[int]
    schedulers: _containers.RepeatedCompositeFieldContainer[Scheduler]
    def __init__(self, schedulers: _Optional[_Iterable[_Union[Scheduler, _Mapping]]] = ...) -> None: ...

class Scheduler(_message.Message):
    __slots__ = ("name", "aliases", "diffusers_class", "description", "min_steps", "max_steps", "sigma_schedules", "timestep_spacings", "takes_eta", "parameters_schema", "plugin")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    DIFFUSERS_CLASS_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    MIN_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    SIGMA_SCHEDULES_FIELD_NUMBER: _ClassVar[int]
    TIMESTEP_SPACINGS_FIELD_NUMBER: _ClassVar[int]
    TAKES_ETA_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    name: str
    aliases: _containers.RepeatedScalarFieldContainer[str]
    diffusers_class: str
    description: str
    min_steps: int
    max_steps: int
    sigma_schedules: _containers.RepeatedScalarFieldContainer[_parameters_pb2.SigmaSchedule]
    timestep_spacings: _containers.RepeatedScalarFieldContainer[_parameters_pb2.TimestepSpacing]
    takes_eta: bool
    parameters_schema: _struct_pb2.Struct
    plugin: str
    def __init__(self, name: _Optional[str] = ..., aliases: _Optional[_Iterable[str]] = ..., diffusers_class: _Optional[str] = ..., description: _Optional[str] = ..., min_steps: _Optional[int] = ..., max_steps: _Optional[int] = ..., sigma_schedules: _Optional[_Iterable[_Union[_parameters_pb2.SigmaSchedule, str]]] = ..., timestep_spacings: _Optional[_Iterable[_Union[_parameters_pb2.TimestepSpacing, str]]] = ..., takes_eta: bool = ..., parameters_schema: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., plugin: _Optional[str] = ...) -> None: ...

class ListLorasRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListLorasResponse(_message.Message):
    __slots__ = ("loras",)
    LORAS_FIELD_NUMBER: _ClassVar[int]
    loras: _containers.RepeatedCompositeFieldContainer[Lora]
    def __init__(self, loras: _Optional[_Iterable[_Union[Lora, _Mapping]]] = ...) -> None: ...

class Lora(_message.Message):
    __slots__ = ("name", "description", "family", "models", "components", "weight_bytes", "unusable")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    UNUSABLE_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    family: str
    models: _containers.RepeatedScalarFieldContainer[str]
    components: _containers.RepeatedScalarFieldContainer[str]
    weight_bytes: int
    unusable: str
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., family: _Optional[str] = ..., models: _Optional[_Iterable[str]] = ..., components: _Optional[_Iterable[str]] = ..., weight_bytes: _Optional[int] = ..., unusable: _Optional[str] = ...) -> None: ...

class ListControlNetsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListControlNetsResponse(_message.Message):
    __slots__ = ("control_nets",)
    CONTROL_NETS_FIELD_NUMBER: _ClassVar[int]
    control_nets: _containers.RepeatedCompositeFieldContainer[ControlNet]
    def __init__(self, control_nets: _Optional[_Iterable[_Union[ControlNet, _Mapping]]] = ...) -> None: ...

class ControlNet(_message.Message):
    __slots__ = ("name", "description", "family", "models", "preprocessor", "residency", "weight_bytes", "unusable")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSOR_FIELD_NUMBER: _ClassVar[int]
    RESIDENCY_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    UNUSABLE_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    family: str
    models: _containers.RepeatedScalarFieldContainer[str]
    preprocessor: str
    residency: Residency
    weight_bytes: int
    unusable: str
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., family: _Optional[str] = ..., models: _Optional[_Iterable[str]] = ..., preprocessor: _Optional[str] = ..., residency: _Optional[_Union[Residency, str]] = ..., weight_bytes: _Optional[int] = ..., unusable: _Optional[str] = ...) -> None: ...

class ListPreprocessorsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPreprocessorsResponse(_message.Message):
    __slots__ = ("preprocessors",)
    PREPROCESSORS_FIELD_NUMBER: _ClassVar[int]
    preprocessors: _containers.RepeatedCompositeFieldContainer[Preprocessor]
    def __init__(self, preprocessors: _Optional[_Iterable[_Union[Preprocessor, _Mapping]]] = ...) -> None: ...

class Preprocessor(_message.Message):
    __slots__ = ("name", "description", "parameters_schema", "plugin")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    parameters_schema: _struct_pb2.Struct
    plugin: str
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., parameters_schema: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., plugin: _Optional[str] = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("model", "replicas")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    model: str
    replicas: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[str] = ..., replicas: _Optional[_Iterable[str]] = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("loading", "model")
    LOADING_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    loading: _events_pb2.LoadingEvent
    model: Model
    def __init__(self, loading: _Optional[_Union[_events_pb2.LoadingEvent, _Mapping]] = ..., model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("model", "replicas")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    model: str
    replicas: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[str] = ..., replicas: _Optional[_Iterable[str]] = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ("freed_bytes",)
    FREED_BYTES_FIELD_NUMBER: _ClassVar[int]
    freed_bytes: int
    def __init__(self, freed_bytes: _Optional[int] = ...) -> None: ...

class GetServerLoadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerLoadResponse(_message.Message):
    __slots__ = ("queued_jobs", "running_jobs", "waiting_images", "active_images", "open_streams", "batches", "weights", "device_bytes", "parked_bytes", "memory_budget_bytes")
    QUEUED_JOBS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_JOBS_FIELD_NUMBER: _ClassVar[int]
    WAITING_IMAGES_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_IMAGES_FIELD_NUMBER: _ClassVar[int]
    OPEN_STREAMS_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PARKED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    queued_jobs: int
    running_jobs: int
    waiting_images: int
    active_images: int
    open_streams: int
    batches: _containers.RepeatedCompositeFieldContainer[BatchLoad]
    weights: _containers.RepeatedCompositeFieldContainer[WeightsLoad]
    device_bytes: int
    parked_bytes: int
    memory_budget_bytes: int
    def __init__(self, queued_jobs: _Optional[int] = ..., running_jobs: _Optional[int] = ..., waiting_images: _Optional[int] = ..., active_images: _Optional[int] = ..., open_streams: _Optional[int] = ..., batches: _Optional[_Iterable[_Union[BatchLoad, _Mapping]]] = ..., weights: _Optional[_Iterable[_Union[WeightsLoad, _Mapping]]] = ..., device_bytes: _Optional[int] = ..., parked_bytes: _Optional[int] = ..., memory_budget_bytes: _Optional[int] = ...) -> None: ...

class BatchLoad(_message.Message):
    __slots__ = ("model", "size", "steps", "rows", "step_seconds")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    model: str
    size: str
    steps: int
    rows: int
    step_seconds: float
    def __init__(self, model: _Optional[str] = ..., size: _Optional[str] = ..., steps: _Optional[int] = ..., rows: _Optional[int] = ..., step_seconds: _Optional[float] = ...) -> None: ...

class WeightsLoad(_message.Message):
    __slots__ = ("kind", "name", "model", "residency", "bytes", "users")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RESIDENCY_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    USERS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    model: str
    residency: Residency
    bytes: int
    users: int
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ..., model: _Optional[str] = ..., residency: _Optional[_Union[Residency, str]] = ..., bytes: _Optional[int] = ..., users: _Optional[int] = ...) -> None: ...

class RescanAssetsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RescanAssetsResponse(_message.Message):
    __slots__ = ("changes",)
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[AssetChange]
    def __init__(self, changes: _Optional[_Iterable[_Union[AssetChange, _Mapping]]] = ...) -> None: ...

class AssetChange(_message.Message):
    __slots__ = ("kind", "name", "what", "detail")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    what: AssetChangeKind
    detail: str
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ..., what: _Optional[_Union[AssetChangeKind, str]] = ..., detail: _Optional[str] = ...) -> None: ...
