"""Pictures in a notebook: one output for each, which its previews update as they come."""

import importlib
from typing import Any

from darkroom_client.errors import DarkroomError
from darkroom_client.events import ControlImage, Event, Image, Picture, Preview


class Notebook:
    """The outputs of one cell. Needs IPython, which has called for them."""

    def __init__(self) -> None:
        self._display: Any = importlib.import_module("IPython.display").display
        self._handles: dict[tuple[str, int], Any] = {}  # by kind and index

    def show(self, event: Event | Picture) -> None:
        """Shows an event's picture in the place of the earlier ones of its index; no other event."""
        match event:
            case Preview() | Image():
                self._put(("image", event.image_index), event)
            case ControlImage():
                self._put(("control", event.control_index), event)

    def fail(self, error: DarkroomError) -> None:
        """Shows a job's error."""
        self._display({"text/plain": f"{type(error).__name__}: {error}"}, raw=True)

    def _put(self, place: tuple[str, int], event: Picture) -> None:
        if place in self._handles:
            self._handles[place].update(event)
        else:
            self._handles[place] = self._display(event, display_id=True)
