"""JSON lines: one JSON object per event on stdout."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from darkroom_client.cli._jobs import Job
from darkroom_client.cli._json import print_line, to_json
from darkroom_client.errors import DarkroomError
from darkroom_client.events import Event

_EVENT_NAMES = {"ControlImage": "control_image"}  # others: the class name in lower case
_FIELD_NAMES = {"image_bytes": "bytes"}


class JsonLines:
    """A listener that prints events. Picture bytes are replaced by their number and the path of the file."""

    def __init__(self, path_of: Sequence[Callable[[Job, Event], Path | None]]) -> None:
        self._path_of = path_of

    def on_event(self, job: Job, event: Event) -> None:
        name = type(event).__name__
        values = {_FIELD_NAMES.get(key, key): value for key, value in to_json(event).items()}
        line = {"event": _EVENT_NAMES.get(name, name.lower()), **_place(job), **values}
        path = next((path for find in self._path_of if (path := find(job, event)) is not None), None)
        print_line(line if path is None else line | {"path": str(path)})

    def on_error(self, job: Job, error: DarkroomError) -> None:
        print_line({"event": "error", **_place(job), **error_fields(error)})


def _place(job: Job) -> dict[str, int]:
    """The job's index, and its line of stdin if it has one."""
    return {"job": job.index} | ({"line": job.line} if job.line is not None else {})


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
