"""Flags of `darkroom serve` to settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from darkroom_plugins.files.hub_paths import PREFIX, hub_place, is_weights_file


class Flags:
    """Reads flags that name what is offered; `problems` collects what is wrong with them."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def models(self, texts: Sequence[str] | None) -> list[dict[str, Any]] | None:
        """The settings of models; None if none are given."""
        return list(self._each("--model", model, texts or ())) if texts else None

    def files(self, option: str, texts: Sequence[str] | None) -> list[dict[str, Any]] | None:
        """The settings of safetensors files; None if none are given."""
        return list(self._each(option, file, texts or ())) if texts else None

    def control_nets(
        self, texts: Sequence[str] | None, preprocessors: Sequence[str] | None
    ) -> list[dict[str, Any]] | None:
        """The settings of ControlNets, with their preprocessors; None if none are given."""
        nets = list(self._each("--controlnet", _named, texts or ()))
        by_name = {net["name"]: net for net in nets}

        def assign(text: str) -> None:
            name, _, preprocessor = text.partition("=")
            if name not in by_name or not preprocessor:
                known = ", ".join(by_name) or "none"
                raise ValueError(f"{text!r} is not CONTROLNET=NAME; the ControlNets given are: {known}")
            by_name[name]["preprocessor"] = preprocessor

        for _ in self._each("--preprocessor", assign, preprocessors or ()):
            pass
        return nets or None

    def _each(self, option: str, read: Callable[[str], Any], texts: Sequence[str]) -> Iterator[Any]:
        for text in texts:
            try:
                yield read(text)
            except ValueError as error:
                self.problems.append(f"Invalid value for {option}: {error}")


def model(text: str) -> dict[str, Any]:
    """The settings of a model from [NAME=]PATH or [NAME=]OWNER/NAME@REVISION; an existing path takes precedence.

    :raises ValueError: a missing path, or an invalid name
    """
    name, equals, source = text.rpartition("=")
    repository = re.fullmatch(r"[\w.-]+/[\w.-]+(@[^@\s]+)?", source)
    if repository and not any(Path(each).expanduser().exists() for each in (text, source)):
        if not repository[1]:
            at = f"{source}@REVISION"
            raise ValueError(
                f"there is nothing at {source}; of a repository of the hub a tag or commit is needed: {at}"
            )
        text = f"{name}{equals}{PREFIX}{source}"
    return _named(text)


def file(text: str) -> dict[str, Any]:
    """The settings of a safetensors file.

    :raises ValueError: a missing file, or an invalid name
    """
    found = _named(text)
    if not is_weights_file(found["path"]):
        raise ValueError(f"{found['path']} is a folder; a safetensors file is needed")
    return found


def _named(text: str) -> dict[str, Any]:
    """Name and path from NAME=PATH, or from PATH alone: then the name is the file's, without its suffix.

    :raises ValueError: a missing path, or an invalid name
    """
    given: str | None
    given, equals, rest = text.partition("=")
    whole = Path(text).expanduser()
    if not equals or whole.exists():  # an existing path may contain equals signs
        given, rest = None, text
    path = Path(rest).expanduser()
    place = hub_place(path)
    if not place and not path.exists():
        raise ValueError(f"there is nothing at {path}")
    named = Path(place.inner or place.repository) if place else path.resolve()
    name = given if given is not None else named.name.removesuffix(".safetensors")
    return {"name": _checked(name, f": give one, NAME={path}"), "path": path}


def checked_name(name: str) -> str:
    """:raises typer.BadParameter: a --name that cannot be one"""
    try:
        return _checked(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--name") from None


def _checked(name: str, hint: str = "") -> str:
    if not re.fullmatch(r"[A-Za-z0-9._/-]{1,128}", name):
        raise ValueError(f"{name!r} cannot be a name (letters, digits and any of ._/-){hint}")
    return name
