"""The lines of a TOML document on which its values are, which tomllib does not tell."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from darkroom_server.config.consistency import Location


def line_of(location: Location, text: str) -> int | None:
    """The line, from 1, of a value, or of the innermost table around it that is there; None for one of none.

    What is inside an array or an inline table of several lines is on the line where that begins.
    """
    lines = _lines(text)
    places = (location[:length] for length in range(len(location), 0, -1))
    return next((lines[place] for place in places if place in lines), None)


def _lines(text: str) -> dict[Location, int]:
    """Where each key, and each table with a header, of a valid document begins."""
    lines: dict[Location, int] = {}
    table: Location = ()
    sizes: Counter[Location] = Counter()  # of arrays of tables
    for line, statement in _statements(text):
        content = tomllib.loads(statement)
        if statement.lstrip().startswith("["):
            table = _opened(content, sizes)
            for length in range(1, len(table) + 1):
                lines.setdefault(table[:length], line)
        else:
            for place in _places(content):
                lines.setdefault((*table, *place), line)
    return lines


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Each header, and each key with its value, with the line that it begins on: the fewest lines that are TOML by
    themselves."""
    lines, begin = text.split("\n"), 0
    for end in range(1, len(lines) + 1):
        statement = "\n".join(lines[begin:end])
        try:
            tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue  # in an array or a string of several lines
        yield begin + 1, statement
        begin = end


def _opened(header: Any, sizes: Counter[Location]) -> Location:
    """The place of the table that a header, as tomllib reads it alone, opens: in the last one of each array."""
    table: Location = ()
    while header:
        ((key, header),) = header.items()
        table += (key,)
        if isinstance(header, list):  # [[…]] begins one more
            sizes[table] += 1
            header = None
        if sizes[table]:
            table += (sizes[table] - 1,)
    return table


def _places(value: Any, at: Location = ()) -> Iterator[Location]:
    """The places of all values within a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield (*at, key)
        yield from _places(inner, (*at, key))
