"""`darkroom models` and `darkroom schedulers`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import typer

from darkroom_client.cli import _options

if TYPE_CHECKING:  # `--help` need not load them
    from google.protobuf.message import Message

    from darkroom.v1 import catalog_service_pb2 as catalog


def models(
    as_json: _options.AsJson = False,
    address: _options.Address = None,
    token: _options.Token = None,
    root_certificate: _options.RootCertificate = None,
) -> None:
    """Lists the models that the server offers."""
    from darkroom_client._sync import Client

    with Client(address, token=token, root_certificate=root_certificate) as client:
        found = client.models()
    if as_json:
        _print_json(found)
    else:
        header = ["model", "family", "size", "steps", "guidance", "scheduler", "state", "device", "description"]
        _print_table(header, map(_model_row, found))


def schedulers(
    as_json: _options.AsJson = False,
    address: _options.Address = None,
    token: _options.Token = None,
    root_certificate: _options.RootCertificate = None,
) -> None:
    """Lists the noise schedulers that the server has."""
    from darkroom_client._sync import Client

    with Client(address, token=token, root_certificate=root_certificate) as client:
        found = client.schedulers()
    if as_json:
        _print_json(found)
    else:
        header = ["scheduler", "aliases", "steps", "sigmas", "spacings", "eta", "diffusers class", "description"]
        _print_table(header, map(_scheduler_row, found))


def _model_row(model: catalog.Model) -> list[str]:
    from darkroom_client._messages import word

    name = f"{model.name} (default)" if model.is_default else model.name
    size = f"{model.default_width}x{model.default_height}"
    state = word(model, "residency") or ""
    device = f"{model.device} {model.dtype}".strip()
    steps, guidance = str(model.default_num_inference_steps), f"{model.default_guidance_scale:g}"
    return [name, model.family, size, steps, guidance, model.default_scheduler, state, device, model.description]


def _scheduler_row(entry: catalog.Scheduler) -> list[str]:
    from darkroom_client._messages import word

    return [
        entry.name,
        ", ".join(entry.aliases),
        f"{entry.min_steps}-{entry.max_steps}",
        ", ".join(word(entry, "sigma_schedules")),
        ", ".join(word(entry, "timestep_spacings")),
        "yes" if entry.takes_eta else "",
        entry.diffusers_class,
        entry.description,
    ]


def _print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*header)
    for row in rows:
        table.add_row(*map(escape, row))
    console = Console()
    if not console.is_terminal:  # nothing to fit into, so nothing need be cut
        console.width = 1000
    console.print(table)


def _print_json(found: Sequence[Message]) -> None:
    from google.protobuf import json_format

    plain: list[dict[str, Any]] = [json_format.MessageToDict(each, preserving_proto_field_name=True) for each in found]
    typer.echo(json.dumps(plain, indent=2, ensure_ascii=False))
