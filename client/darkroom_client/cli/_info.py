"""`darkroom info`: what a server is and allows."""

from operator import attrgetter

import typer

from darkroom_client.cli import _options
from darkroom_client.cli._groups import with_option_groups
from darkroom_client.cli._options import Server
from darkroom_client.cli._tables import Cell, heading, megabytes, print_list, schema_lines

_DEVICES: dict[str, Cell] = {
    "device": attrgetter("id"),
    "name": attrgetter("name"),
    "memory": lambda device: megabytes(device.memory_bytes),
    "instructions": attrgetter("instructions"),
    "threads": lambda device: str(device.threads or ""),
    "deterministic rows": lambda device: str(device.deterministic_rows),
}
_PLUGINS: dict[str, Cell] = {
    "plugin": attrgetter("name"),
    "version": lambda plugin: "built in" if plugin.builtin else plugin.version,
    "contributes": lambda plugin: tuple(hook.removeprefix("darkroom_") for hook in plugin.hooks),
}


@with_option_groups
def info(server: Server, as_json: _options.AsJson = False) -> None:
    """Show the server's versions, devices, limits and plugins with their parameters.

    Examples:
    darkroom info
    darkroom info --json | jq .limits.max_edge
    """
    from dataclasses import asdict

    from darkroom_client._sync import Client

    with Client(**server.keywords()) as client:
        found = client.server_info()
    if as_json:
        from darkroom_client.cli._json import print_json

        print_json(found)
        return
    typer.echo(f"Darkroom {found.version} at {client.address}, API {found.api_version}")
    typer.echo(f"torch {found.torch_version}, diffusers {found.diffusers_version}")
    typer.echo(f"Default model: {found.default_model}")
    heading("Devices")
    print_list(_DEVICES, found.devices)
    heading("Limits of a request")
    for name, limit in asdict(found.limits).items():
        typer.echo(f"{name.replace('_', ' '):24}{limit:>14,}")
    heading("Plugins")
    print_list(_PLUGINS, found.plugins)
    parameters = [schema_lines(plugin.extensions_schema, f"{plugin.name}.") for plugin in found.plugins]
    if any(parameters):
        heading("Parameters of plugins, for --extension")
        typer.echo("\n".join(filter(None, parameters)))
