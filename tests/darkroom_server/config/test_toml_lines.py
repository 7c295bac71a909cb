"""Lines of TOML values, in documents that are made statement by statement, so that each line is known."""

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from hypothesis import given
from hypothesis import strategies as st

from darkroom_server.config.consistency import Location
from darkroom_server.config.toml_lines import line_of

Written: TypeAlias = tuple[str, Any]  # a key or value: its TOML, and what that means

# What looks like other statements, or like the end of a line to other rules than TOML's.
TRAPS = ("[x]", "[[x]]", "x = 1", "# x", "x", "]", "}", "=", '"', "", "  ", "\u2028", "\x85")
TEXTS = st.sampled_from(TRAPS) | st.text("ab.#[]={}'\"\\ \t\u2028", max_size=6)
LINES = st.lists(st.sampled_from(TRAPS[:-6] + TRAPS[-4:]), max_size=4).map("\n".join)
ABSENT = "a key that no document has"


def quoted(text: str) -> Written:
    return json.dumps(text, ensure_ascii=False), text


BARE = st.text("abc123-_", min_size=1, max_size=4).map(lambda text: (text, text))
LITERAL = TEXTS.filter(lambda text: "'" not in text).map(lambda text: (f"'{text}'", text))
COMMON = st.sampled_from([("a", "a"), ('"a"', "a"), ("b", "b")])
KEYS: st.SearchStrategy[Written] = COMMON | BARE | TEXTS.map(quoted) | LITERAL

SCALARS: st.SearchStrategy[Written] = st.one_of(
    st.integers(-99, 99).map(lambda number: (str(number), number)),
    st.sampled_from([("true", True), ("1e3", 1000.0), ("0x10", 16)]),
    TEXTS.map(quoted),
    LITERAL,
    LINES.map(lambda text: (f"'''\n{text}'''", text)),
    LINES.map(lambda text: (f'"""\n{text}"""', text)),
)


def compound(inner: st.SearchStrategy[Written]) -> st.SearchStrategy[Written]:
    return st.builds(array, st.lists(inner, max_size=3), st.sampled_from([" ", "\n", " # ]\n", "\n\n"])) | st.builds(
        inline_table, st.lists(st.tuples(KEYS, inner), max_size=3, unique_by=lambda item: item[0][1])
    )


def array(items: list[Written], space: str) -> Written:
    inside = "".join(f"{space}{text},{space}" for text, _ in items)
    return f"[{inside}{space}]", [value for _, value in items]


def inline_table(items: list[tuple[Written, Written]]) -> Written:
    inside = ", ".join(f"{key} = {value}" for (key, _), (value, _) in items)
    return f"{{{inside}}}", {key: value for (_, key), (_, value) in items}


VALUES = st.recursive(SCALARS, compound, max_leaves=4)


@dataclass
class Table:
    """A table, or one entry of an array of tables."""

    location: Location = ()
    header: tuple[str, ...] = ()  # its keys
    values: dict[str, Any] = field(default_factory=dict)
    dotted: set[Location] = field(default_factory=set)  # the tables in it that its dotted keys made

    def takes(self, keys: list[Written]) -> bool:
        """Whether these dotted keys can be added."""
        values, location = self.values, self.location
        for _, key in keys[:-1]:
            location = (*location, key)
            if key not in values or location not in self.dotted:
                return key not in values
            values = values[key]
        return keys[-1][1] not in values


@dataclass
class Document:
    """A TOML document, what it means, and the line of each place in it."""

    text: str = ""
    places: dict[Location, int] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=lambda: [Table()])  # that can have more within, the root first
    last_entries: list[tuple[Table, list[dict[str, Any]]]] = field(default_factory=list)  # each with its whole array

    @property
    def root(self) -> dict[str, Any]:
        return self.tables[0].values

    def write(self, statement: str) -> None:
        self.text += f"{statement}\n"

    def note(self, *locations: Location) -> None:
        """Places that begin with the next statement, unless they did before."""
        for location in locations:
            self.places.setdefault(location, self.text.count("\n") + 1)

    def add(self, table: Table, keys: list[Written], value: Written, end: str) -> None:
        """A key with its value, where it can be added."""
        if not table.takes(keys):
            return
        values, location = self.descend(table, keys)
        table.dotted |= {location[:length] for length in range(len(table.location) + 1, len(location))}
        values[keys[-1][1]] = value[1]
        self.note(*within(value[1], location))
        self.write(f"{'.'.join(text for text, _ in keys)} = {value[0]}{end}")

    def open(self, parent: Table, keys: list[Written], is_array: bool, end: str) -> None:
        """The header of a new table or array of tables, unless the first of its dotted keys is there."""
        if keys[0][1] in parent.values:
            return
        values, location = self.descend(parent, keys)
        table = Table(location, (*parent.header, *(text for text, _ in keys)))
        self.note(location)
        values[keys[-1][1]] = table.values
        if is_array:
            table.location = (*location, 0)
            self.note(table.location)
            values[keys[-1][1]] = [table.values]
            self.last_entries.append((table, values[keys[-1][1]]))
        self.tables.append(table)
        self.write(header(table, is_array) + end)

    def open_next(self, at: int, end: str) -> None:
        """The header of an array's next entry. What is in the entry before can be added to no more."""
        before, entries = self.last_entries[at]
        table = Table((*before.location[:-1], len(entries)), before.header)
        entries.append(table.values)
        old, length = before.location, len(before.location)
        self.tables = [each for each in self.tables if each.location[:length] != old]
        self.last_entries = [each for each in self.last_entries if each[0].location[:length] != old]
        self.tables.append(table)
        self.last_entries.append((table, entries))
        self.note(table.location)
        self.write(header(table, True) + end)

    def descend(self, table: Table, keys: list[Written]) -> tuple[dict[str, Any], Location]:
        """The table that all dotted keys but the last one make, with the location of the last."""
        values, location = table.values, table.location
        for _, key in keys[:-1]:
            location = (*location, key)
            self.note(location)
            values = values.setdefault(key, {})
        return values, (*location, keys[-1][1])


def header(table: Table, is_array: bool) -> str:
    keys = " . ".join(table.header)
    return f"[[{keys}]]" if is_array else f"[ {keys} ]"


def within(value: Any, location: Location) -> Iterator[Location]:
    """A value's place, and those of all values in it."""
    yield location
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield from within(inner, (*location, key))


ENDS = st.sampled_from(["", " ", " # [x]", "\n", "\n# x = 1", "\n  \n\n"])  # of a statement, with lines of none
DOTTED = st.lists(KEYS, min_size=1, max_size=3)
BODIES = st.lists(st.tuples(DOTTED, VALUES, ENDS), max_size=3)


@st.composite
def documents(draw: st.DrawFn) -> Document:
    document = Document(draw(st.sampled_from(["", "\n", "# [x]\n\n"])))
    for section in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["table", "array", "next", "next"])) if section else "root"
        if kind == "next" and document.last_entries:
            document.open_next(draw(st.integers(0, len(document.last_entries) - 1)), draw(ENDS))
        elif kind != "root":
            document.open(draw(st.sampled_from(document.tables)), draw(DOTTED), kind != "table", draw(ENDS))
        for keys, value, end in draw(BODIES):
            document.add(document.tables[-1], keys, value, end)
    return document


@given(documents())
def test_each_value_and_table_is_on_its_line(document: Document) -> None:
    assert tomllib.loads(document.text) == document.root
    found = {place: line_of(place, document.text) for place in document.places}
    assert found == document.places


@given(documents(), st.data())
def test_what_is_missing_is_on_the_line_of_the_table_around_it(document: Document, data: st.DataObject) -> None:
    place = data.draw(st.sampled_from([(), *document.places]))
    assert line_of((*place, ABSENT), document.text) == document.places.get(place)
    assert line_of((*place, 99, ABSENT), document.text) == document.places.get(place)
