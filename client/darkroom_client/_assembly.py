"""Converts the messages of a stream to events, and reassembles chunked pictures."""

from dataclasses import fields, replace
from datetime import UTC
from typing import Any, NamedTuple, TypeAlias

from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from darkroom.v1 import catalog_service_pb2, events_pb2, image_service_pb2
from darkroom_client import catalog, events
from darkroom_client._fields import field_value
from darkroom_client.errors import DarkroomError

_EVENT_TYPES: dict[str, Any] = {  # by field of JobEvent's oneof `event`
    "accepted": events.Accepted,
    "queued": events.Queued,
    "loading": events.Loading,
    "step": events.Step,
    "preview": events.Preview,
    "control_image": events.ControlImage,
    "image": events.Image,
    "completed": events.Completed,
}
_RECORDS: dict[Any, Any] = {  # by message
    events_pb2.Timings: events.Timings,
    catalog_service_pb2.Device: catalog.Device,
    catalog_service_pb2.ServerLimits: catalog.ServerLimits,
    catalog_service_pb2.Plugin: catalog.Plugin,
    catalog_service_pb2.GetServerInfoResponse: catalog.ServerInfo,
    catalog_service_pb2.BatchLoad: catalog.BatchLoad,
    catalog_service_pb2.WeightsLoad: catalog.WeightsLoad,
    catalog_service_pb2.ModelReplica: catalog.ModelReplica,
    catalog_service_pb2.GetServerLoadResponse: catalog.ServerLoad,
    catalog_service_pb2.Model: catalog.Model,
    catalog_service_pb2.Preset: catalog.Preset,
    catalog_service_pb2.Task: catalog.Task,
    catalog_service_pb2.Scheduler: catalog.Scheduler,
    catalog_service_pb2.Lora: catalog.Lora,
    catalog_service_pb2.ControlNet: catalog.ControlNet,
    catalog_service_pb2.Preprocessor: catalog.Preprocessor,
    catalog_service_pb2.AssetChange: catalog.AssetChange,
}
_Chunked: TypeAlias = events.Image | events.ControlImage


class _Incomplete(NamedTuple):
    """A picture whose chunks have not all arrived."""

    event: _Chunked
    data: bytearray  # the bytes received so far
    total_bytes: int  # of the whole file


class Assembler:
    """Converts the messages of one job to events; holds pictures back until their last chunk."""

    def __init__(self) -> None:
        self._incomplete: dict[tuple[str, int], _Incomplete] = {}  # by chunk target: field and index

    def feed(self, message: events_pb2.JobEvent) -> events.Event | None:
        """The event that `message` is or completes; None for an incomplete picture or an unknown kind of event.

        :raises DarkroomError: if a chunk is missing.
        """
        kind = message.WhichOneof("event")
        if kind == "chunk":
            return self._add_chunk(message)
        if kind not in _EVENT_TYPES:
            return None
        event: events.Event = _to_event(message, kind)
        if isinstance(event, events.Image | events.ControlImage):
            return self._hold_back(event, getattr(message, kind).total_bytes)
        return event

    def _hold_back(self, event: _Chunked, total_bytes: int) -> _Chunked | None:
        """Returns a complete picture; keeps an incomplete one and returns None."""
        if len(event.image_bytes) >= total_bytes:
            return event
        self._incomplete[_chunk_target(event)] = _Incomplete(event, bytearray(event.image_bytes), total_bytes)
        return None

    def _add_chunk(self, message: events_pb2.JobEvent) -> events.Event | None:
        chunk = message.chunk
        target = chunk.WhichOneof("target") or "image_index"
        key = (target, getattr(chunk, target))
        picture = self._incomplete.get(key)
        if picture is None or chunk.offset != len(picture.data):
            raise DarkroomError(f"a part of a picture is missing before offset {chunk.offset} ({target} {key[1]})")
        picture.data.extend(chunk.data)
        if len(picture.data) < picture.total_bytes:
            return None
        del self._incomplete[key]
        # The last chunk's sequence: watch(after_sequence=…) then resumes after the whole picture.
        return replace(picture.event, image_bytes=bytes(picture.data), sequence=message.sequence)


def _chunk_target(event: _Chunked) -> tuple[str, int]:
    if isinstance(event, events.Image):
        return "image_index", event.image_index
    return "control_index", event.control_index


def _to_event(message: events_pb2.JobEvent, kind: str) -> Any:
    """The event in the oneof field `kind`."""
    cls = _EVENT_TYPES[kind]
    values = _values(getattr(message, kind), cls)
    return cls(request_id=message.request_id, sequence=message.sequence, **values)


def loading_event(body: events_pb2.LoadingEvent) -> events.Loading:
    """The event for a LoadModel call, which has no job."""
    return events.Loading(request_id="", sequence=0, **_values(body, events.Loading))


def record(message: Any) -> Any:
    """A message of the catalog as its record; other values as they are, sequences one by one."""
    if isinstance(message, tuple):
        return tuple(map(record, message))
    if isinstance(message, Timestamp):
        return message.ToDatetime(UTC)
    cls = _RECORDS.get(type(message))
    return message if cls is None else cls(**_values(message, cls))


def job_record(message: image_service_pb2.Job, thumbnail: bytes = b"") -> catalog.Job:
    """A job of a list."""
    return catalog.Job(request_id=message.request_id, thumbnail=thumbnail, **_values(message, catalog.Job))


def _values(body: Message, cls: Any) -> dict[str, Any]:
    """The message's values for the fields of a dataclass."""
    names = {field.name for field in fields(cls)} - {"request_id", "sequence", "thumbnail"}
    return {name: record(_value(body, name)) for name in names}


def _value(body: Message, name: str) -> Any:
    field = body.DESCRIPTOR.fields_by_name[name]
    value = field_value(body, field)
    is_message = field.message_type not in (None, Struct.DESCRIPTOR, Timestamp.DESCRIPTOR)
    return getattr(body, name) if value is None and is_message else value  # an empty message rather than None
