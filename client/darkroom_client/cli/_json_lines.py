"""JSON lines: one JSON object per event on stdout."""

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer
from google.protobuf import json_format
from google.protobuf.message import Message

from darkroom_client.cli._jobs import Job
from darkroom_client.errors import DarkroomError
from darkroom_client.events import Event, Timings

_EVENT_NAMES = {"ControlImage": "control_image"}  # others: the class name in lower case


class JsonLines:
    """A listener that prints events. Picture bytes are replaced by their number and the path of the file."""

    def __init__(self, path_of: Sequence[Callable[[Job, Event], Path | None]]) -> None:
        self._path_of = path_of

    def on_event(self, job: Job, event: Event) -> None:
        name = type(event).__name__
        line = {"event": _EVENT_NAMES.get(name, name.lower()), "job": job.index, **_to_dict(event)}
        path = next((path for find in self._path_of if (path := find(job, event)) is not None), None)
        print_line(line if path is None else line | {"path": str(path)})

    def on_error(self, job: Job, error: DarkroomError) -> None:
        print_line({"event": "error", "job": job.index, **error_fields(error)})


def error_fields(error: DarkroomError) -> dict[str, Any]:
    """An error's JSON object."""
    return {
        "error": type(error).__name__,
        "message": error.message,
        "reason": error.reason,
        "code": error.code,
        "violations": [violation._asdict() for violation in error.violations],
        "retry_after": error.retry_after,
    }


def print_line(line: Any) -> None:
    """Prints a JSON value on one line."""
    typer.echo(json.dumps(line, ensure_ascii=False))


def _to_dict(value: Any) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for field in fields(value):
        content = getattr(value, field.name)
        if field.name == "image_bytes":
            result["bytes"] = len(content)
        else:
            result[field.name] = _to_json(content)
    return result


def _to_json(content: Any) -> Any:
    if isinstance(content, Message):
        return json_format.MessageToDict(content, preserving_proto_field_name=True)
    return _to_dict(content) if isinstance(content, Timings) else content
