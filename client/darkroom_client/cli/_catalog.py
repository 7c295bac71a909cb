"""The catalog commands: `darkroom models`, `tasks`, `schedulers`, `loras`, `controlnets` and `preprocessors`."""

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

import typer

from darkroom_client.cli import _options
from darkroom_client.cli._groups import with_option_groups
from darkroom_client.cli._options import Server
from darkroom_client.cli._tables import Cell, megabytes, print_list, schema_lines


def _list(noun: str, purpose: str, method: str, columns: Mapping[str, Cell]) -> Callable[..., None]:
    """A command. `noun`: of the entries, plural; `method`: of Client; `columns`: by heading."""

    def show(server: Server, as_json: _options.AsJson = False) -> None:
        from darkroom_client._sync import Client

        with Client(**server.keywords()) as client:
            found = getattr(client, method)()
        if as_json:
            from darkroom_client.cli._json import print_json

            print_json(found)
        elif found:
            print_list(columns, found)
        else:
            typer.echo(f"The server offers no {noun}.", err=True)

    command = f"darkroom {method.replace('_', '')}"
    show.__doc__ = f"List the server's {noun}{purpose}.\n\nExamples:\n{command}\n{command} --json | jq '.[].name'"
    return with_option_groups(show)


def _models(asset: Any) -> str:
    """The models that an asset fits, or why it fits none."""
    return ", ".join(asset.models) or f"none: {asset.unusable or 'it fits no model of this server'}"


_size: Cell = lambda entry: megabytes(entry.weight_bytes)  # noqa: E731

models = _list(
    "models",
    ", with their defaults and state",
    "models",
    {
        "model": lambda entry: f"{entry.name} (default)" if entry.is_default else entry.name,
        "family": attrgetter("family"),
        "size": lambda entry: f"{entry.default_width}x{entry.default_height}",
        "steps": attrgetter("default_num_inference_steps"),
        "guidance": attrgetter("default_guidance_scale"),
        "scheduler": attrgetter("default_scheduler"),
        "presets": lambda entry: tuple(preset.name for preset in entry.presets),
        "previews": attrgetter("preview_modes"),
        "state": attrgetter("residency"),
        "weights": _size,
        "device": lambda entry: f"{entry.device} {entry.dtype}".strip(),
        "description": attrgetter("description"),
    },
)
tasks = _list(
    "tasks",
    ", such as txt2img and inpaint",
    "tasks",
    {
        "task": attrgetter("name"),
        "calls": attrgetter("rpcs"),
        "plugin": attrgetter("plugin"),
        "description": attrgetter("description"),
    },
)
schedulers = _list(
    "noise schedulers",
    ", with their step ranges, sigma schedules and timestep spacings",
    "schedulers",
    {
        "scheduler": attrgetter("name"),
        "aliases": attrgetter("aliases"),
        "steps": lambda entry: f"{entry.min_steps}-{entry.max_steps}",
        "sigmas": attrgetter("sigma_schedules"),
        "spacings": attrgetter("timestep_spacings"),
        "eta": attrgetter("takes_eta"),
        "diffusers class": attrgetter("diffusers_class"),
        "description": attrgetter("description"),
    },
)
loras = _list(
    "LoRAs",
    "",
    "loras",
    {
        "lora": attrgetter("name"),
        "models": _models,
        "changes": attrgetter("components"),
        "size": _size,
        "description": attrgetter("description"),
    },
)
controlnets = _list(
    "ControlNets",
    "",
    "control_nets",
    {
        "controlnet": attrgetter("name"),
        "models": _models,
        "preprocessor": attrgetter("preprocessor"),
        "state": attrgetter("residency"),
        "size": _size,
        "description": attrgetter("description"),
    },
)
preprocessors = _list(
    "preprocessors",
    ", which make control maps from pictures",
    "preprocessors",
    {
        "preprocessor": attrgetter("name"),
        "description": attrgetter("description"),
        "options": lambda entry: schema_lines(entry.parameters_schema),
    },
)
