from darkroom.v1 import parameters_pb2 as _parameters_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LoadingPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOADING_PHASE_UNSPECIFIED: _ClassVar[LoadingPhase]
    LOADING_PHASE_DOWNLOAD: _ClassVar[LoadingPhase]
    LOADING_PHASE_READ: _ClassVar[LoadingPhase]

class SafetyVerdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SAFETY_VERDICT_UNSPECIFIED: _ClassVar[SafetyVerdict]
    SAFETY_VERDICT_PASSED: _ClassVar[SafetyVerdict]
    SAFETY_VERDICT_FLAGGED: _ClassVar[SafetyVerdict]
    SAFETY_VERDICT_BLOCKED: _ClassVar[SafetyVerdict]
LOADING_PHASE_UNSPECIFIED: LoadingPhase
LOADING_PHASE_DOWNLOAD: LoadingPhase
LOADING_PHASE_READ: LoadingPhase
SAFETY_VERDICT_UNSPECIFIED: SafetyVerdict
SAFETY_VERDICT_PASSED: SafetyVerdict
SAFETY_VERDICT_FLAGGED: SafetyVerdict
SAFETY_VERDICT_BLOCKED: SafetyVerdict

class JobEvent(_message.Message):
    __slots__ = ("request_id", "sequence", "accepted", "queued", "loading", "step", "preview", "control_image", "image", "chunk", "completed")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    LOADING_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    CONTROL_IMAGE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    sequence: int
    accepted: AcceptedEvent
    queued: QueuedEvent
    loading: LoadingEvent
    step: StepEvent
    preview: PreviewEvent
    control_image: ControlImageEvent
    image: ImageEvent
    chunk: ChunkEvent
    completed: CompletedEvent
    def __init__(self, request_id: _Optional[str] = ..., sequence: _Optional[int] = ..., accepted: _Optional[_Union[AcceptedEvent, _Mapping]] = ..., queued: _Optional[_Union[QueuedEvent, _Mapping]] = ..., loading: _Optional[_Union[LoadingEvent, _Mapping]] = ..., step: _Optional[_Union[StepEvent, _Mapping]] = ..., preview: _Optional[_Union[PreviewEvent, _Mapping]] = ..., control_image: _Optional[_Union[ControlImageEvent, _Mapping]] = ..., image: _Optional[_Union[ImageEvent, _Mapping]] = ..., chunk: _Optional[_Union[ChunkEvent, _Mapping]] = ..., completed: _Optional[_Union[CompletedEvent, _Mapping]] = ...) -> None: ...

class AcceptedEvent(_message.Message):
    __slots__ = ("parameters", "seeds", "step_count", "preview", "output", "estimated_wait_seconds", "estimated_end_seconds")
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    STEP_COUNT_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_END_SECONDS_FIELD_NUMBER: _ClassVar[int]
    parameters: _parameters_pb2.Parameters
    seeds: _containers.RepeatedScalarFieldContainer[int]
    step_count: int
    preview: _parameters_pb2.PreviewOptions
    output: _parameters_pb2.OutputOptions
    estimated_wait_seconds: float
    estimated_end_seconds: float
    def __init__(self, parameters: _Optional[_Union[_parameters_pb2.Parameters, _Mapping]] = ..., seeds: _Optional[_Iterable[int]] = ..., step_count: _Optional[int] = ..., preview: _Optional[_Union[_parameters_pb2.PreviewOptions, _Mapping]] = ..., output: _Optional[_Union[_parameters_pb2.OutputOptions, _Mapping]] = ..., estimated_wait_seconds: _Optional[float] = ..., estimated_end_seconds: _Optional[float] = ...) -> None: ...

class QueuedEvent(_message.Message):
    __slots__ = ("position", "estimated_wait_seconds", "estimated_end_seconds", "restarts")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_END_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    position: int
    estimated_wait_seconds: float
    estimated_end_seconds: float
    restarts: int
    def __init__(self, position: _Optional[int] = ..., estimated_wait_seconds: _Optional[float] = ..., estimated_end_seconds: _Optional[float] = ..., restarts: _Optional[int] = ...) -> None: ...

class LoadingEvent(_message.Message):
    __slots__ = ("model", "component", "phase", "bytes_done", "bytes_total")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    BYTES_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    model: str
    component: str
    phase: LoadingPhase
    bytes_done: int
    bytes_total: int
    def __init__(self, model: _Optional[str] = ..., component: _Optional[str] = ..., phase: _Optional[_Union[LoadingPhase, str]] = ..., bytes_done: _Optional[int] = ..., bytes_total: _Optional[int] = ...) -> None: ...

class StepEvent(_message.Message):
    __slots__ = ("image_index", "step", "step_count", "timestep", "sigma", "elapsed_seconds", "eta_seconds", "batch_rows")
    IMAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEP_COUNT_FIELD_NUMBER: _ClassVar[int]
    TIMESTEP_FIELD_NUMBER: _ClassVar[int]
    SIGMA_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ETA_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    image_index: int
    step: int
    step_count: int
    timestep: float
    sigma: float
    elapsed_seconds: float
    eta_seconds: float
    batch_rows: int
    def __init__(self, image_index: _Optional[int] = ..., step: _Optional[int] = ..., step_count: _Optional[int] = ..., timestep: _Optional[float] = ..., sigma: _Optional[float] = ..., elapsed_seconds: _Optional[float] = ..., eta_seconds: _Optional[float] = ..., batch_rows: _Optional[int] = ...) -> None: ...

class PreviewEvent(_message.Message):
    __slots__ = ("image_index", "step", "image_bytes", "media_type", "width", "height", "decoder")
    IMAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    DECODER_FIELD_NUMBER: _ClassVar[int]
    image_index: int
    step: int
    image_bytes: bytes
    media_type: str
    width: int
    height: int
    decoder: _parameters_pb2.PreviewMode
    def __init__(self, image_index: _Optional[int] = ..., step: _Optional[int] = ..., image_bytes: _Optional[bytes] = ..., media_type: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., decoder: _Optional[_Union[_parameters_pb2.PreviewMode, str]] = ...) -> None: ...

class ControlImageEvent(_message.Message):
    __slots__ = ("control_index", "image_bytes", "media_type", "width", "height", "preprocessor", "total_bytes")
    CONTROL_INDEX_FIELD_NUMBER: _ClassVar[int]
    IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSOR_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    control_index: int
    image_bytes: bytes
    media_type: str
    width: int
    height: int
    preprocessor: str
    total_bytes: int
    def __init__(self, control_index: _Optional[int] = ..., image_bytes: _Optional[bytes] = ..., media_type: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., preprocessor: _Optional[str] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class ImageEvent(_message.Message):
    __slots__ = ("image_index", "image_bytes", "media_type", "width", "height", "seed", "safety", "metadata", "total_bytes")
    IMAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SAFETY_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    image_index: int
    image_bytes: bytes
    media_type: str
    width: int
    height: int
    seed: int
    safety: SafetyVerdict
    metadata: _struct_pb2.Struct
    total_bytes: int
    def __init__(self, image_index: _Optional[int] = ..., image_bytes: _Optional[bytes] = ..., media_type: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., seed: _Optional[int] = ..., safety: _Optional[_Union[SafetyVerdict, str]] = ..., metadata: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class ChunkEvent(_message.Message):
    __slots__ = ("image_index", "control_index", "offset", "data")
    IMAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    CONTROL_INDEX_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    image_index: int
    control_index: int
    offset: int
    data: bytes
    def __init__(self, image_index: _Optional[int] = ..., control_index: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class CompletedEvent(_message.Message):
    __slots__ = ("timings", "warnings", "approximations")
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    APPROXIMATIONS_FIELD_NUMBER: _ClassVar[int]
    timings: Timings
    warnings: _containers.RepeatedScalarFieldContainer[str]
    approximations: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, timings: _Optional[_Union[Timings, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ..., approximations: _Optional[_Iterable[str]] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue_seconds", "load_seconds", "encode_prompt_seconds", "denoise_seconds", "decode_seconds", "total_seconds")
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LOAD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ENCODE_PROMPT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DENOISE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DECODE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    queue_seconds: float
    load_seconds: float
    encode_prompt_seconds: float
    denoise_seconds: float
    decode_seconds: float
    total_seconds: float
    def __init__(self, queue_seconds: _Optional[float] = ..., load_seconds: _Optional[float] = ..., encode_prompt_seconds: _Optional[float] = ..., denoise_seconds: _Optional[float] = ..., decode_seconds: _Optional[float] = ..., total_seconds: _Optional[float] = ...) -> None: ...
