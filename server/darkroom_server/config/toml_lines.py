"""Line numbers of values in a TOML document, which tomllib does not provide."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from darkroom_server.config.consistency import Location


def line_of(location: Location, text: str) -> int | None:
    """The line, from 1, of a value, or of its innermost enclosing table; None if absent.

    A value inside a multi-line array or inline table has the line on which that begins.
    """
    lines = _lines(text)
    places = (location[:length] for length in range(len(location), 0, -1))
    return next((lines[place] for place in places if place in lines), None)


def _lines(text: str) -> dict[Location, int]:
    """The first line of each key, and of each table with a header, of a valid document."""
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
    """Each header and each key-value pair with its first line: the shortest runs of lines that parse as TOML."""
    lines, begin = text.split("\n"), 0
    for end in range(1, len(lines) + 1):
        statement = "\n".join(lines[begin:end])
        try:
            tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue  # inside a multi-line array or string
        yield begin + 1, statement
        begin = end


def _opened(header: Any, sizes: Counter[Location]) -> Location:
    """The location of the table that a parsed header opens, in the last element of each array of tables."""
    table: Location = ()
    while header:
        ((key, header),) = header.items()
        table += (key,)
        if isinstance(header, list):  # [[…]] appends an element
            sizes[table] += 1
            header = None
        if sizes[table]:
            table += (sizes[table] - 1,)
    return table


def _places(value: Any, at: Location = ()) -> Iterator[Location]:
    """The locations of all nested values."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield (*at, key)
        yield from _places(inner, (*at, key))
