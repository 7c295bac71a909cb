"""From the messages of a stream to events: one message is one event, or a part of a large picture."""

from dataclasses import fields, replace
from typing import Any, NamedTuple, TypeAlias

from google.protobuf import json_format
from google.protobuf.message import Message

from darkroom.v1 import events_pb2
from darkroom_client import events
from darkroom_client._enums import field_names
from darkroom_client.errors import DarkroomError

_KINDS: dict[str, Any] = {
    "accepted": events.Accepted,
    "queued": events.Queued,
    "loading": events.Loading,
    "step": events.Step,
    "preview": events.Preview,
    "control_image": events.ControlImage,
    "image": events.Image,
    "completed": events.Completed,
}
_Part: TypeAlias = events.Image | events.ControlImage


class _Pending(NamedTuple):
    event: _Part
    data: bytearray
    total_bytes: int


class Assembler:
    """Turns the messages of one job into events, and puts chunked pictures together."""

    def __init__(self) -> None:
        self._pending: dict[tuple[str, int], _Pending] = {}  # by the chunks' target: field name and index

    def feed(self, message: events_pb2.JobEvent) -> events.Event | None:
        """The event that `message` makes or completes; None for a part of one, and for kinds not known here.

        :raises DarkroomError: when the parts of a picture do not fit together.
        """
        kind = message.WhichOneof("event")
        if kind == "chunk":
            return self._add(message)
        if kind not in _KINDS:
            return None
        event: events.Event = _to_event(message, kind)
        if isinstance(event, events.Image | events.ControlImage):
            return self._whole(event, getattr(message, kind).total_bytes)
        return event

    def _whole(self, event: _Part, total_bytes: int) -> _Part | None:
        if len(event.image_bytes) >= total_bytes:
            return event
        self._pending[_target(event)] = _Pending(event, bytearray(event.image_bytes), total_bytes)
        return None

    def _add(self, message: events_pb2.JobEvent) -> events.Event | None:
        chunk = message.chunk
        target = chunk.WhichOneof("target") or "image_index"
        key = (target, getattr(chunk, target))
        pending = self._pending.get(key)
        if pending is None or chunk.offset != len(pending.data):
            raise DarkroomError(f"a part of a picture is missing before offset {chunk.offset} ({target} {key[1]})")
        pending.data.extend(chunk.data)
        if len(pending.data) < pending.total_bytes:
            return None
        del self._pending[key]
        # With the sequence of its last part, so that watching on after this event misses nothing of it.
        return replace(pending.event, image_bytes=bytes(pending.data), sequence=message.sequence)


def _target(event: _Part) -> tuple[str, int]:
    if isinstance(event, events.Image):
        return "image_index", event.image_index
    return "control_index", event.control_index


def _to_event(message: events_pb2.JobEvent, kind: str) -> Any:
    """The event of a message whose oneof has `kind` set."""
    body = getattr(message, kind)
    values = _values(body, _KINDS[kind])
    return _KINDS[kind](request_id=message.request_id, sequence=message.sequence, **values)


def loading(body: events_pb2.LoadingEvent) -> events.Loading:
    """A loading event from outside of a job."""
    return events.Loading(request_id="", sequence=0, **_values(body, events.Loading))


def _values(body: Message, cls: Any) -> dict[str, Any]:
    names = {field.name for field in fields(cls)} - {"request_id", "sequence"}
    return {name: _value(body, name) for name in names}


def _value(body: Message, name: str) -> Any:
    """A field of a message as the events hold it: None for unset, tuples, words for enums, a dictionary for JSON."""
    field = body.DESCRIPTOR.fields_by_name[name]
    value = getattr(body, name)
    if field.has_presence and field.message_type is None and not body.HasField(name):
        return None
    if field.enum_type is not None:
        return field_names(body, name)
    if name == "metadata":
        return json_format.MessageToDict(value)
    if name == "timings":
        return events.Timings(**_values(value, events.Timings))
    return tuple(value) if field.is_repeated else value
