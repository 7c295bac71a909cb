from darkroom.v1 import edits_pb2 as _edits_pb2
from darkroom.v1 import events_pb2 as _events_pb2
from darkroom.v1 import parameters_pb2 as _parameters_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GenerateRequest(_message.Message):
    __slots__ = ("request_id", "parameters", "preview", "output", "disconnect_policy", "deterministic")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    DISCONNECT_POLICY_FIELD_NUMBER: _ClassVar[int]
    DETERMINISTIC_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    parameters: _parameters_pb2.Parameters
    preview: _parameters_pb2.PreviewOptions
    output: _parameters_pb2.OutputOptions
    disconnect_policy: _parameters_pb2.DisconnectPolicy
    deterministic: bool
    def __init__(self, request_id: _Optional[str] = ..., parameters: _Optional[_Union[_parameters_pb2.Parameters, _Mapping]] = ..., preview: _Optional[_Union[_parameters_pb2.PreviewOptions, _Mapping]] = ..., output: _Optional[_Union[_parameters_pb2.OutputOptions, _Mapping]] = ..., disconnect_policy: _Optional[_Union[_parameters_pb2.DisconnectPolicy, str]] = ..., deterministic: bool = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: _events_pb2.JobEvent
    def __init__(self, event: _Optional[_Union[_events_pb2.JobEvent, _Mapping]] = ...) -> None: ...

class EditRequest(_message.Message):
    __slots__ = ("request_id", "parameters", "preview", "output", "disconnect_policy", "deterministic", "image", "resize_mode", "image_to_image", "inpaint", "outpaint")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    DISCONNECT_POLICY_FIELD_NUMBER: _ClassVar[int]
    DETERMINISTIC_FIELD_NUMBER: _ClassVar[int]
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
    image: bytes
    resize_mode: _edits_pb2.ResizeMode
    image_to_image: _edits_pb2.ImageToImage
    inpaint: _edits_pb2.Inpaint
    outpaint: _edits_pb2.Outpaint
    def __init__(self, request_id: _Optional[str] = ..., parameters: _Optional[_Union[_parameters_pb2.Parameters, _Mapping]] = ..., preview: _Optional[_Union[_parameters_pb2.PreviewOptions, _Mapping]] = ..., output: _Optional[_Union[_parameters_pb2.OutputOptions, _Mapping]] = ..., disconnect_policy: _Optional[_Union[_parameters_pb2.DisconnectPolicy, str]] = ..., deterministic: bool = ..., image: _Optional[bytes] = ..., resize_mode: _Optional[_Union[_edits_pb2.ResizeMode, str]] = ..., image_to_image: _Optional[_Union[_edits_pb2.ImageToImage, _Mapping]] = ..., inpaint: _Optional[_Union[_edits_pb2.Inpaint, _Mapping]] = ..., outpaint: _Optional[_Union[_edits_pb2.Outpaint, _Mapping]] = ...) -> None: ...

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
