"""The catalog commands: `darkroom models`, `tasks`, `schedulers`, `loras`, `controlnets` and `preprocessors`."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import typer

from darkroom_client._enums import field_names
from darkroom_client.cli import _options
from darkroom_client.cli._groups import with_option_groups
from darkroom_client.cli._options import Server

_Cell: TypeAlias = Callable[[Any], str]  # the text of a catalog entry's cell


@dataclass(frozen=True, slots=True)
class _List:
    """A catalog command."""

    noun: str  # of the entries, plural
    purpose: str  # for the help, after the noun
    method: str  # of Client
    columns: Mapping[str, _Cell]  # by heading


def _field(name: str) -> _Cell:
    return lambda entry: str(getattr(entry, name))


def _joined(name: str, between: str = ", ") -> _Cell:
    return lambda entry: between.join(getattr(entry, name))


def _models(asset: Any) -> str:
    """The models that an asset fits, or why it fits none."""
    return ", ".join(asset.models) or f"none: {asset.unusable or 'it fits no model of this server'}"


def _enum(name: str) -> _Cell:
    """The name of an enum value, or of several."""

    def cell(entry: Any) -> str:
        found = field_names(entry, name) or ""
        return found if isinstance(found, str) else ", ".join(found)

    return cell


def _schema_lines(entry: Any) -> str:
    """The properties of the entry's JSON schema, one per line."""
    from google.protobuf import json_format

    schema = json_format.MessageToDict(entry.parameters_schema)
    return "\n".join(_property_line(name, each) for name, each in sorted(schema.get("properties", {}).items()))


def _property_line(name: str, schema: Mapping[str, Any]) -> str:
    """NAME=DEFAULT (VALUES): DESCRIPTION."""
    kind = next((each for each in schema.get("anyOf", []) if each.get("type") != "null"), schema)
    bounds = [_option_value(kind[key]) for key in ("minimum", "maximum") if key in kind]
    values = " to ".join(bounds) or " | ".join(map(_option_value, kind.get("enum", []))) or str(kind.get("type", ""))
    default = schema.get("default")
    start = f"{name}={_option_value(default)}" if default is not None else name
    return f"{start} ({values}): {schema['description']}" if "description" in schema else f"{start} ({values})"


def _option_value(value: Any) -> str:
    """A JSON value in the form for --option. Whole numbers arrive as floats."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else str(value)
    return value if isinstance(value, str) else json.dumps(value)


def _size(entry: Any) -> str:
    return f"{entry.weight_bytes / 1e6:.1f} MB" if entry.weight_bytes else ""


_LISTS = {
    "models": _List(
        "models",
        ", with their defaults and state",
        "models",
        {
            "model": lambda entry: f"{entry.name} (default)" if entry.is_default else entry.name,
            "family": _field("family"),
            "size": lambda entry: f"{entry.default_width}x{entry.default_height}",
            "steps": _field("default_num_inference_steps"),
            "guidance": lambda entry: f"{entry.default_guidance_scale:g}",
            "scheduler": _field("default_scheduler"),
            "previews": _enum("preview_modes"),
            "state": _enum("residency"),
            "weights": _size,
            "device": lambda entry: f"{entry.device} {entry.dtype}".strip(),
            "description": _field("description"),
        },
    ),
    "tasks": _List(
        "tasks",
        ", such as txt2img and inpaint",
        "tasks",
        {
            "task": _field("name"),
            "calls": _joined("rpcs"),
            "plugin": _field("plugin"),
            "description": _field("description"),
        },
    ),
    "schedulers": _List(
        "noise schedulers",
        ", with their step ranges, sigma schedules and timestep spacings",
        "schedulers",
        {
            "scheduler": _field("name"),
            "aliases": _joined("aliases"),
            "steps": lambda entry: f"{entry.min_steps}-{entry.max_steps}",
            "sigmas": _enum("sigma_schedules"),
            "spacings": _enum("timestep_spacings"),
            "eta": lambda entry: "yes" if entry.takes_eta else "",
            "diffusers class": _field("diffusers_class"),
            "description": _field("description"),
        },
    ),
    "loras": _List(
        "LoRAs",
        "",
        "loras",
        {
            "lora": _field("name"),
            "models": _models,
            "changes": _joined("components"),
            "size": _size,
            "description": _field("description"),
        },
    ),
    "controlnets": _List(
        "ControlNets",
        "",
        "control_nets",
        {
            "controlnet": _field("name"),
            "models": _models,
            "preprocessor": _field("preprocessor"),
            "state": _enum("residency"),
            "size": _size,
            "description": _field("description"),
        },
    ),
    "preprocessors": _List(
        "preprocessors",
        ", which make control maps from pictures",
        "preprocessors",
        {"preprocessor": _field("name"), "description": _field("description"), "options": _schema_lines},
    ),
}


def commands() -> dict[str, Callable[..., None]]:
    """The catalog commands by name."""
    return {name: _command(each) for name, each in _LISTS.items()}


def _command(listed: _List) -> Callable[..., None]:
    def show(server: Server, as_json: _options.AsJson = False) -> None:
        from darkroom_client._sync import Client

        with Client(**server.keywords()) as client:
            found = getattr(client, listed.method)()
        if as_json:
            _print_json(found)
        elif found:
            _print_table(listed.columns, found)
        else:
            typer.echo(f"The server offers no {listed.noun}.", err=True)

    show.__doc__ = f"List the server's {listed.noun}{listed.purpose}."
    return with_option_groups(show)


def _print_table(columns: Mapping[str, _Cell], found: Iterable[Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*columns)
    for entry in found:
        table.add_row(*(escape(cell(entry)) for cell in columns.values()))
    console = Console()
    if not console.is_terminal:  # without a width to fit, cells are not cut
        console.width = 1000
    console.print(table)


def _print_json(found: Sequence[Any]) -> None:
    from google.protobuf import json_format

    entries = [json_format.MessageToDict(each, preserving_proto_field_name=True) for each in found]
    typer.echo(json.dumps(entries, indent=2, ensure_ascii=False))
