import datetime

from darkroom.v1 import edits_pb2 as _edits_pb2
from darkroom.v1 import events_pb2 as _events_pb2
from darkroom.v1 import parameters_pb2 as _parameters_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_QUEUED: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_COMPLETED: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_QUEUED: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_COMPLETED: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_CANCELLED: JobState

class GenerateRequest(_message.Message):
    __slots__ = ("request_id", "parameters", "preview", "output", "disconnect_policy", "deterministic", "priority")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    DISCONNECT_POLICY_FIELD_NUMBER: _ClassVar[int]
    DETERMINISTIC_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    parameters: _parameters_pb2.Parameters
    preview: _parameters_pb2.PreviewOptions
    output: _parameters_pb2.OutputOptions
    disconnect_policy: _parameters_pb2.DisconnectPolicy
    deterministic: bool
    priority: _parameters_pb2.Priority
    def __init__(self, request_id: _Optional[str] = ..., parameters: _Optional[_Union[_parameters_pb2.Parameters, _Mapping]] = ..., preview: _Optional[_Union[_parameters_pb2.PreviewOptions, _Mapping]] = ..., output: _Optional[_Union[_parameters_pb2.OutputOptions, _Mapping]] = ..., disconnect_policy: _Optional[_Union[_parameters_pb2.DisconnectPolicy, str]] = ..., deterministic: bool = ..., priority: _Optional[_Union[_parameters_pb2.Priority, str]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: _events_pb2.JobEvent
    def __init__(self, event: _Optional[_Union[_events_pb2.JobEvent, _Mapping]] = ...) -> None: ...

class EditRequest(_message.Message):
    __slots__ = ("request_id", "parameters", "preview", "output", "disconnect_policy", "deterministic", "priority", "image", "resize_mode", "image_to_image", "inpaint", "outpaint")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    DISCONNECT_POLICY_FIELD_NUMBER: _ClassVar[int]
    DETERMINISTIC_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    RESIZE_MODE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_TO_IMAGE_FIELD_NUMBER: _ClassVar[int]
    INPAINT_FIELD_NUMBER: _ClassVar[int]
    OUTPAINT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    parameters: _parameters_pb2.Parameters
    preview: _parameters_pb2.PreviewOptions
    output: _parameters_pb2.OutputOptions
    disconnect_policy: _parameters_pb2.DisconnectPolicy
    deterministic: bool
    priority: _parameters_pb2.Priority
    image: bytes
    resize_mode: _edits_pb2.ResizeMode
    image_to_image: _edits_pb2.ImageToImage
    inpaint: _edits_pb2.Inpaint
    outpaint: _edits_pb2.Outpaint
    def __init__(self, request_id: _Optional[str] = ..., parameters: _Optional[_Union[_parameters_pb2.Parameters, _Mapping]] = ..., preview: _Optional[_Union[_parameters_pb2.PreviewOptions, _Mapping]] = ..., output: _Optional[_Union[_parameters_pb2.OutputOptions, _Mapping]] = ..., disconnect_policy: _Optional[_Union[_parameters_pb2.DisconnectPolicy, str]] = ..., deterministic: bool = ..., priority: _Optional[_Union[_parameters_pb2.Priority, str]] = ..., image: _Optional[bytes] = ..., resize_mode: _Optional[_Union[_edits_pb2.ResizeMode, str]] = ..., image_to_image: _Optional[_Union[_edits_pb2.ImageToImage, _Mapping]] = ..., inpaint: _Optional[_Union[_edits_pb2.Inpaint, _Mapping]] = ..., outpaint: _Optional[_Union[_edits_pb2.Outpaint, _Mapping]] = ...) -> None: ...

class EditResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: _events_pb2.JobEvent
    def __init__(self, event: _Optional[_Union[_events_pb2.JobEvent, _Mapping]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("request_id", "after_sequence")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    after_sequence: int
    def __init__(self, request_id: _Optional[str] = ..., after_sequence: _Optional[int] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: _events_pb2.JobEvent
    def __init__(self, event: _Optional[_Union[_events_pb2.JobEvent, _Mapping]] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("request_id", "owner", "state", "kept", "task", "model", "prompt", "num_images", "step_count", "step", "images_done", "position", "create_time", "start_time", "end_time", "expire_time", "error", "error_reason", "priority", "estimated_start_time", "estimated_end_time", "width", "height", "batch_rows", "step_seconds")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    NUM_IMAGES_FIELD_NUMBER: _ClassVar[int]
    STEP_COUNT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    IMAGES_DONE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ERROR_REASON_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_START_TIME_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_END_TIME_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    owner: str
    state: JobState
    kept: bool
    task: str
    model: str
    prompt: str
    num_images: int
    step_count: int
    step: int
    images_done: int
    position: int
    create_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    error: str
    error_reason: str
    priority: _parameters_pb2.Priority
    estimated_start_time: _timestamp_pb2.Timestamp
    estimated_end_time: _timestamp_pb2.Timestamp
    width: int
    height: int
    batch_rows: int
    step_seconds: float
    def __init__(self, request_id: _Optional[str] = ..., owner: _Optional[str] = ..., state: _Optional[_Union[JobState, str]] = ..., kept: bool = ..., task: _Optional[str] = ..., model: _Optional[str] = ..., prompt: _Optional[str] = ..., num_images: _Optional[int] = ..., step_count: _Optional[int] = ..., step: _Optional[int] = ..., images_done: _Optional[int] = ..., position: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., error: _Optional[str] = ..., error_reason: _Optional[str] = ..., priority: _Optional[_Union[_parameters_pb2.Priority, str]] = ..., estimated_start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., estimated_end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., batch_rows: _Optional[int] = ..., step_seconds: _Optional[float] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "active_only")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_ONLY_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    active_only: bool
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., active_only: bool = ...) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs", "next_page_token")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    next_page_token: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetJobRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class GetJobResponse(_message.Message):
    __slots__ = ("job", "thumbnail")
    JOB_FIELD_NUMBER: _ClassVar[int]
    THUMBNAIL_FIELD_NUMBER: _ClassVar[int]
    job: Job
    thumbnail: bytes
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ..., thumbnail: _Optional[bytes] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class CancelResponse(_message.Message):
    __slots__ = ("cancelled",)
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    cancelled: bool
    def __init__(self, cancelled: bool = ...) -> None: ...

class PreprocessRequest(_message.Message):
    __slots__ = ("request_id", "preprocessor", "preprocessor_options", "format", "image")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSOR_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSOR_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    preprocessor: str
    preprocessor_options: _struct_pb2.Struct
    format: _parameters_pb2.ImageFormat
    image: bytes
    def __init__(self, request_id: _Optional[str] = ..., preprocessor: _Optional[str] = ..., preprocessor_options: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., format: _Optional[_Union[_parameters_pb2.ImageFormat, str]] = ..., image: _Optional[bytes] = ...) -> None: ...

class PreprocessResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: _events_pb2.JobEvent
    def __init__(self, event: _Optional[_Union[_events_pb2.JobEvent, _Mapping]] = ...) -> None: ...
