"""Lists on the terminal: a table where it fits, else a block of lines for each entry."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

Cell: TypeAlias = Callable[[Any], Any]  # the content of an entry's cell: text, a number, a flag or several texts


def print_list(columns: Mapping[str, Cell], entries: Iterable[Any]) -> None:
    """Prints the entries. `columns`: by heading; the first names the entry, `description` is a line of its own."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    rows = [[text(cell(entry)) for cell in columns.values()] for entry in entries]
    console = Console()
    if not console.is_terminal:  # without a width to fit, cells are not cut
        console.width = 1000
    table = Table(*columns)
    for row in rows:
        table.add_row(*map(escape, row))
    if console.measure(table, options=console.options.update(max_width=10_000)).maximum <= console.width:
        console.print(table)
        return
    for row in rows:
        _print_block(console, dict(zip(columns, row, strict=True)))


def text(value: Any) -> str:
    """A value for people: names of several joined by commas, nothing for None and False, `yes` for True."""
    if value is None or value is False:
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    return "yes" if value is True else ", ".join(map(text, value)) if isinstance(value, tuple) else str(value)


def schema_lines(schema: Mapping[str, Any] | None, prefix: str = "") -> str:
    """The properties of a JSON schema of options, one per line: NAME=DEFAULT (VALUES): DESCRIPTION."""
    properties = (schema or {}).get("properties", {})
    return "\n".join(prefix + _property_line(name, each) for name, each in sorted(properties.items()))


def _property_line(name: str, schema: Mapping[str, Any]) -> str:
    kind = next((each for each in schema.get("anyOf", []) if each.get("type") != "null"), schema)
    bounds = [_option_value(kind[key]) for key in ("minimum", "maximum") if key in kind]
    values = " to ".join(bounds) or " | ".join(map(_option_value, kind.get("enum", []))) or str(kind.get("type", ""))
    default = schema.get("default")
    start = f"{name}={_option_value(default)}" if default is not None else name
    return f"{start} ({values}): {schema['description']}" if "description" in schema else f"{start} ({values})"


def _option_value(value: Any) -> str:
    """A JSON value in the form for --option."""
    import json

    return value if isinstance(value, str) else json.dumps(value)


def _print_block(console: Any, row: dict[str, str]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    name = next(iter(row))
    console.print(Text(row.pop(name), "bold"))
    lines = [row.pop("description", "")]
    short = {heading: cell for heading, cell in row.items() if cell and "\n" not in cell}
    lines.append("; ".join(f"{heading} {cell}" for heading, cell in short.items()))
    long = {heading: cell for heading, cell in row.items() if "\n" in cell}
    for line in [*filter(None, lines), *(line for cell in long.values() for line in cell.splitlines())]:
        console.print(Padding(Text(line), (0, 0, 0, 2), expand=False))


def megabytes(count: int) -> str:
    """A number of bytes; nothing for 0."""
    return f"{count / 1e6:.1f} MB" if count else ""


def heading(title: str) -> None:
    """Prints the title of a list."""
    from rich.console import Console
    from rich.text import Text

    Console().print(Text(f"\n{title}", "bold underline"))
