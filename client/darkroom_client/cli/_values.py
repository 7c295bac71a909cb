"""Reads what options hold: KEY=VALUE, sizes, margins, pictures. What is wrong is a typer.BadParameter."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import typer

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)")


def wrong(option: str, problem: str) -> NoReturn:
    """Ends the command, as an option cannot be what it is.

    :raises typer.BadParameter: always.
    """
    raise typer.BadParameter(problem, param_hint=option)


def assigned(text: str, option: str, form: str) -> tuple[str, str]:
    """What stands before and after the first `=`; `form` says how it should look."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        wrong(option, f"{text!r} is not {form}")
    return key, value


def by_key(texts: Iterable[str] | None, option: str = "--option") -> dict[str, Any]:
    """{KEY: VALUE} out of KEY=VALUE; VALUE is JSON, or else a string, so that words need no quotes."""
    pairs = (assigned(text, option, "KEY=VALUE") for text in texts or ())
    return {key: _json_value(value) for key, value in pairs}


def by_name(texts: Iterable[str] | None, option: str, form: str) -> dict[str, dict[str, Any]]:
    """{NAME: {KEY: VALUE}} out of NAME.KEY=VALUE; a name may hold dots."""
    found: dict[str, dict[str, Any]] = {}
    for text in texts or ():
        path, value = assigned(text, option, form)
        name, _, key = path.rpartition(".")
        if not (name and key):
            wrong(option, f"{text!r} is not {form}")
        found.setdefault(name, {})[key] = _json_value(value)
    return found


def scaled(text: str) -> tuple[Path, float | None]:
    """A path and its scale out of PATH or PATH:SCALE. What is a file as it stands is a path, colons and all."""
    path, colon, scale = text.rpartition(":")
    if colon and _NUMBER.fullmatch(scale) and not Path(text).exists():
        return Path(path), float(scale)
    return Path(text), None


def picture(path: Path, option: str) -> bytes:
    """The bytes of a picture's file."""
    try:
        return path.read_bytes()
    except OSError as error:
        wrong(option, f"{path}: {error.strerror}")


def sizes(original: str | None, offset: str | None, target: str | None) -> dict[str, int] | None:
    """The fields of SizeConditioning; None where nothing is given."""
    given = {
        ("original_width", "original_height"): _two(original, "x", "--original-size", "WIDTHxHEIGHT"),
        ("crop_left", "crop_top"): _two(offset, ",", "--crop-offset", "LEFT,TOP"),
        ("target_width", "target_height"): _two(target, "x", "--target-size", "WIDTHxHEIGHT"),
    }
    return {name: each for names, pair in given.items() for name, each in zip(names, pair, strict=False)} or None


def margins(text: str) -> tuple[int, int, int, int]:
    """Pixels at the left, top, right and bottom, out of L,T,R,B or one number for all."""
    parts = text.split(",") if "," in text else [text] * 4
    if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
        wrong("--outpaint", f"{text!r} is not LEFT,TOP,RIGHT,BOTTOM in pixels")
    left, top, right, bottom = map(int, parts)
    if not (left or top or right or bottom):
        wrong("--outpaint", "needs a margin greater than 0")
    return left, top, right, bottom


def _two(text: str | None, between: str, option: str, form: str) -> tuple[int, ...]:
    if text is None:
        return ()
    parts = text.lower().split(between)
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        wrong(option, f"{text!r} is not {form} in pixels")
    return tuple(map(int, parts))


def _json_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
