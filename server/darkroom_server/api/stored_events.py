"""Messages of kept jobs in the log: events without the bytes of their pictures, which are files of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from darkroom.v1 import events_pb2
from darkroom_server.jobs.log_store import LoggedEvent

BYTES = {"image": "image_bytes", "control_image": "image_bytes", "chunk": "data"}  # of a file, by kind of event


def to_log(events: Iterable[events_pb2.JobEvent]) -> list[LoggedEvent]:
    """The events for the log. Those of one picture come together, as an `image` with all of its `chunk` events."""
    events = list(events)
    files: dict[tuple[str, int], bytearray] = {}
    for event in events:
        if (kind := event.WhichOneof("event")) in BYTES:
            files.setdefault(_target(event), bytearray()).extend(getattr(getattr(event, kind), BYTES[kind]))
    whole, ends = {target: bytes(data) for target, data in files.items()}, dict.fromkeys(files, 0)
    return [_logged(event, whole, ends) for event in events]


def _logged(event: events_pb2.JobEvent, whole: dict[Any, bytes], ends: dict[Any, int]) -> LoggedEvent:
    if (kind := event.WhichOneof("event")) not in BYTES:
        return LoggedEvent(event.sequence, event.SerializeToString())
    target, bare = _target(event), events_pb2.JobEvent()
    bare.CopyFrom(event)
    getattr(bare, kind).ClearField(BYTES[kind])
    start = ends[target]
    ends[target] = stop = start + len(getattr(getattr(event, kind), BYTES[kind]))
    return LoggedEvent(event.sequence, bare.SerializeToString(), whole[target], start, stop)


def from_log(events: Iterable[LoggedEvent]) -> Iterator[events_pb2.JobEvent]:
    """The events as they were."""
    for each in events:
        event = events_pb2.JobEvent.FromString(each.data)
        if (kind := event.WhichOneof("event")) in BYTES:
            setattr(getattr(event, kind), BYTES[kind], each.picture[each.start : each.stop])
        yield event


def _target(event: events_pb2.JobEvent) -> tuple[str, int]:
    """The picture that an event has a part of, as in ChunkEvent.target."""
    if (kind := event.WhichOneof("event")) == "image":
        return "image_index", event.image.image_index
    if kind == "control_image":
        return "control_index", event.control_image.control_index
    target: Any = event.chunk.WhichOneof("target")
    return target, getattr(event.chunk, target)


def picture_of(event: events_pb2.JobEvent) -> tuple[str, int] | None:
    """The picture that an event is about, as in ChunkEvent.target; None of events of the job as a whole."""
    kind = event.WhichOneof("event")
    if kind in ("step", "preview"):
        return "image_index", getattr(event, kind).image_index
    return _target(event) if kind in BYTES else None


def resolved(message: Any, accepted: events_pb2.AcceptedEvent) -> bytes:
    """A request with every default and the seed filled in, which makes the same pictures under other settings."""
    full = type(message)()
    full.CopyFrom(message)
    full.parameters.CopyFrom(accepted.parameters)
    for control, given in zip(full.parameters.controls, message.parameters.controls, strict=True):
        control.image, control.echo_map = given.image, given.echo_map
    for field in ("preview", "output"):
        getattr(full, field).CopyFrom(getattr(accepted, field))
    data: bytes = full.SerializeToString()
    return data
