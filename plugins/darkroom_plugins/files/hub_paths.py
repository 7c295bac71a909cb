"""Paths in repositories of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

PREFIX = "hub:"
FORM = re.compile(r"hub:([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)@([\w.-]+)(?:/(.+))?")
NOTATION = "hub:OWNER/NAME@REVISION or hub:OWNER/NAME@REVISION/FILE"


class HubPlace(NamedTuple):
    """A repository at a tag or commit, or a folder or file in it."""

    repository: str  # "owner/name"
    revision: str
    inner: str  # path in it; "" is all of it

    @property
    def is_file(self) -> bool:
        """Whether it is a weights file."""
        return self.inner.endswith(".safetensors")


def hub_place(path: Path) -> HubPlace | None:
    """A path that begins with ``hub:``, parsed; None for a local path.

    :raises ValueError: it is malformed, or names a branch
    """
    text = str(path)
    if not text.startswith(PREFIX):
        return None
    found = FORM.fullmatch(text)
    if not found:
        raise ValueError(f"{text} is not {NOTATION}")
    repository, revision, inner = found.groups()
    if revision in ("main", "master"):
        raise ValueError("a tag or a commit is needed: a branch moves, and what is served would change with it")
    return HubPlace(repository, revision, inner or "")


def located(path: Path) -> Path:
    """The local path of a weights file or a network's folder; fetched if it is of the hub.

    :raises OSError, ValueError: it cannot be fetched, or the path is malformed
    """
    if (place := hub_place(path)) is None:
        return path
    from darkroom_plugins.files.hub import fetched

    return fetched(place)


def located_config(path: Path) -> Path:
    """The local path of a model's folder, with its configuration only.

    :raises OSError, ValueError: as `located`
    """
    if (place := hub_place(path)) is None:
        return path
    from darkroom_plugins.files.hub import fetched_config

    return fetched_config(place)


def is_weights_file(path: Path) -> bool:
    """Whether a valid path, local or of the hub, is a weights file."""
    place = hub_place(path)
    return place.is_file if place else path.is_file()
