"""What of a job has been delivered, so that another run of it, at another replica, adds the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from darkroom.v1 import events_pb2
from darkroom_server.api.stored_events import BYTES, picture_of


class Delivered:
    """Tells a job's new events from those of earlier runs. Pictures that come in several messages are held back until
    they are whole: the bytes of two runs might differ in rounding."""

    def __init__(self) -> None:
        self.accepted: events_pb2.AcceptedEvent | None = None  # the resolved request
        self._steps: defaultdict[int, int] = defaultdict(int)  # the last one of each image
        self._before: defaultdict[int, int] = defaultdict(int)  # the same when this run began
        self._pictures: set[Any] = set()  # those that were whole
        self._parts: dict[Any, list[events_pb2.JobEvent]] = {}  # of pictures that are not

    def new(self, event: events_pb2.JobEvent) -> Iterator[list[events_pb2.JobEvent]]:
        """The messages that are to be delivered because of this one: those of one event."""
        kind = event.WhichOneof("event")
        match kind:
            case "accepted":
                self._parts.clear()  # of the run before, which was lost
                self._before = self._steps.copy()
                if self.accepted is None:
                    self.accepted = event.accepted
                    yield [event]
            case "step":
                if event.step.step > self._steps[event.step.image_index]:
                    self._steps[event.step.image_index] = event.step.step
                    yield [event]
            case "preview":
                if event.preview.step > self._before[event.preview.image_index]:
                    yield [event]
            case "image" | "control_image" | "chunk":
                yield from self._picture(event)
            case _:
                yield [event]

    def _picture(self, event: events_pb2.JobEvent) -> Iterator[list[events_pb2.JobEvent]]:
        target = picture_of(event)
        if target in self._pictures:
            return
        parts = self._parts.setdefault(target, [])
        parts.append(event)
        first = getattr(parts[0], str(parts[0].WhichOneof("event")))
        if sum(map(_length, parts)) >= first.total_bytes:
            self._pictures.add(target)
            yield self._parts.pop(target)


def _length(event: events_pb2.JobEvent) -> int:
    kind = str(event.WhichOneof("event"))
    return len(getattr(getattr(event, kind), BYTES[kind]))
