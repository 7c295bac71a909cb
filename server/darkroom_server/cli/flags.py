"""Flags of `darkroom serve` to settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import typer

from darkroom_plugins.files.hub_paths import PREFIX, hub_place, is_weights_file


def model(text: str) -> dict[str, Any]:
    """The settings of a model from [NAME=]PATH or [NAME=]OWNER/NAME@REVISION; an existing path takes precedence."""
    name, equals, source = text.rpartition("=")
    repository = re.fullmatch(r"[\w.-]+/[\w.-]+(@[^@\s]+)?", source)
    if repository and not any(Path(each).expanduser().exists() for each in (text, source)):
        if not repository[1]:
            at = f"{source}@REVISION"
            _wrong(
                "--model", f"there is nothing at {source}; of a repository of the hub a tag or commit is needed: {at}"
            )
        text = f"{name}{equals}{PREFIX}{source}"
    return dict(zip(("name", "path"), _name_and_path(text, "--model"), strict=True))


def control_nets(texts: Sequence[str] | None, preprocessors: Sequence[str]) -> list[dict[str, Any]] | None:
    """The settings of ControlNets, with their preprocessors."""
    nets = _named(texts or (), "--controlnet")
    by_name = {net["name"]: net for net in nets}
    for text in preprocessors:
        name, _, preprocessor = text.partition("=")
        if name not in by_name or not preprocessor:
            known = ", ".join(by_name) or "none"
            _wrong("--preprocessor", f"{text!r} is not CONTROLNET=NAME; the ControlNets given are: {known}")
        by_name[name]["preprocessor"] = preprocessor
    return nets or None


def files(texts: Sequence[str] | None, option: str) -> list[dict[str, Any]] | None:
    """The settings of safetensors files."""
    found = _named(texts or (), option)
    for each in found:
        if not is_weights_file(each["path"]):
            _wrong(option, f"{each['path']} is a folder; a safetensors file is needed")
    return found or None


def _named(texts: Sequence[str], option: str) -> list[dict[str, Any]]:
    """Name and path from NAME=PATH, or from PATH alone: then the name is the file's, without its suffix.

    :raises typer.BadParameter: a missing path, or an invalid name
    """
    return [dict(zip(("name", "path"), _name_and_path(text, option), strict=True)) for text in texts]


def _name_and_path(text: str, option: str) -> tuple[str, Path]:
    given: str | None
    given, equals, rest = text.partition("=")
    whole = Path(text).expanduser()
    if not equals or whole.exists():  # an existing path may contain equals signs
        given, rest = None, text
    path = Path(rest).expanduser()
    try:
        place = hub_place(path)
    except ValueError as error:
        _wrong(option, str(error))
    if not place and not path.exists():
        _wrong(option, f"there is nothing at {path}")
    named = Path(place.inner or place.repository) if place else path.resolve()
    name = given if given is not None else named.name.removesuffix(".safetensors")
    return checked_name(name, option, f": give one, NAME={path}"), path


def checked_name(name: str, option: str, hint: str = "") -> str:
    if not re.fullmatch(r"[A-Za-z0-9._/-]{1,128}", name):
        _wrong(option, f"{name!r} cannot be a name (letters, digits and any of ._/-){hint}")
    return name


def _wrong(option: str, problem: str) -> NoReturn:
    raise typer.BadParameter(problem, param_hint=option)
