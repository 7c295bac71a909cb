"""Parsers of option values: KEY=VALUE, sizes, margins, pictures. Invalid ones raise typer.BadParameter."""

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import typer

from darkroom_client._text import os_error

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)")


def usage_error(option: str, problem: str) -> NoReturn:
    """Exits with a usage error about an option.

    :raises typer.BadParameter: always.
    """
    raise typer.BadParameter(problem, param_hint=option)


def split_assignment(text: str, option: str, form: str) -> tuple[str, str]:
    """Splits KEY=VALUE at the first `=`. `form` describes the syntax in the error."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        usage_error(option, f"{text!r} is not {form}")
    return key, value


def parse_pairs(texts: Iterable[str] | None, option: str = "--option") -> dict[str, Any]:
    """Parses KEY=VALUE into {KEY: VALUE}. VALUE is JSON, or else text."""
    pairs = (split_assignment(text, option, "KEY=VALUE") for text in texts or ())
    return {key: _json_value(value) for key, value in pairs}


def parse_dotted_pairs(texts: Iterable[str] | None, option: str, form: str) -> dict[str, dict[str, Any]]:
    """Parses NAME.KEY=VALUE into {NAME: {KEY: VALUE}}. NAME may contain dots."""
    found: dict[str, dict[str, Any]] = {}
    for text in texts or ():
        path, value = split_assignment(text, option, form)
        name, _, key = path.rpartition(".")
        if not (name and key):
            usage_error(option, f"{text!r} is not {form}")
        found.setdefault(name, {})[key] = _json_value(value)
    return found


def parse_scaled_path(text: str) -> tuple[Path, float | None]:
    """Parses PATH or PATH:SCALE. The text is a path if a file of that name exists."""
    path, colon, scale = text.rpartition(":")
    if colon and _NUMBER.fullmatch(scale) and not Path(text).exists():
        return Path(path), float(scale)
    return Path(text), None


def read_picture(path: Path, option: str) -> bytes:
    """The bytes of a picture file, or of stdin for `-`.

    :raises typer.BadParameter: if the file cannot be read, or stdin is at its end.
    """
    try:
        if str(path) != "-":
            return path.read_bytes()
        return sys.stdin.buffer.read() or usage_error(
            option, "stdin is empty or read already: only one picture may be -"
        )
    except OSError as error:
        usage_error(option, os_error(error))


def parse_sizes(original: str | None, offset: str | None, target: str | None) -> dict[str, int] | None:
    """The fields of SizeConditioning; None without any."""
    values = {
        ("original_width", "original_height"): _parse_ints(original, "x", "--original-size", "WIDTHxHEIGHT"),
        ("crop_left", "crop_top"): _parse_ints(offset, ",", "--crop-offset", "LEFT,TOP"),
        ("target_width", "target_height"): _parse_ints(target, "x", "--target-size", "WIDTHxHEIGHT"),
    }
    return {name: each for names, pair in values.items() for name, each in zip(names, pair, strict=False)} or None


def parse_scaling(text: str) -> dict[str, float]:
    """Parses FACTOR or WIDTHxHEIGHT into fields of HiresFix."""
    if _NUMBER.fullmatch(text):
        return {"factor": float(text)}
    return dict(zip(("width", "height"), _parse_ints(text, "x", "--hires-fix", "FACTOR or WIDTHxHEIGHT"), strict=True))


def parse_margins(text: str) -> tuple[int, int, int, int]:
    """Parses L,T,R,B or one number for all. Pixels."""
    parts = text.split(",") if "," in text else [text] * 4
    if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
        usage_error("--outpaint", f"{text!r} is not LEFT,TOP,RIGHT,BOTTOM in pixels")
    left, top, right, bottom = map(int, parts)
    if not (left or top or right or bottom):
        usage_error("--outpaint", "needs a margin greater than 0")
    return left, top, right, bottom


def _parse_ints(text: str | None, separator: str, option: str, form: str) -> tuple[int, ...]:
    """Two integers; none if the option is missing."""
    if text is None:
        return ()
    parts = text.lower().split(separator)
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        usage_error(option, f"{text!r} is not {form} in pixels")
    return tuple(map(int, parts))


def _json_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
