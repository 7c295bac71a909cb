"""`darkroom load`, `darkroom unload` and `darkroom rescan`, for operators."""

from typing import Annotated

import typer

from darkroom_client.cli._groups import with_option_groups
from darkroom_client.cli._options import Server

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Model from `darkroom models`.")]
Replicas = Annotated[
    list[str] | None,
    typer.Option("--replica", metavar="NAME", help="Of a cluster: at this replica, from `darkroom models --json`."),
]


@with_option_groups
def load(model: Model, server: Server, replica: Replicas = None) -> None:
    """Load a model into memory before its first job: of a cluster at one replica, or at those that are named. Needs an
    operator's token.

    Examples:
    darkroom load sdxl
    """
    from rich.console import Console
    from rich.progress import Progress

    from darkroom_client._sync import Client
    from darkroom_client.events import Loading

    with Progress(console=Console(stderr=True), transient=True) as progress, Client(**server.keywords()) as client:
        bar = progress.add_task(f"loading {model}", total=None)

        def show(event: Loading) -> None:
            progress.update(bar, completed=event.bytes_done, total=event.bytes_total or None)

        loaded = client.load_model(model, show, replicas=replica or ())
    typer.echo(f"{loaded.name} is loaded on {loaded.device}: {loaded.weight_bytes / 1e6:.1f} MB")


@with_option_groups
def unload(model: Model, server: Server, replica: Replicas = None) -> None:
    """Unload a model as soon as no job uses it, and free its memory: of a cluster at all replicas, or at those that are
    named. Needs an operator's token.

    Examples:
    darkroom unload sdxl
    """
    from darkroom_client._sync import Client

    with Client(**server.keywords()) as client:
        freed = client.unload_model(model, replicas=replica or ())
    typer.echo(f"freed {freed / 1e6:.1f} MB" if freed else f"{model} was not loaded")


@with_option_groups
def rescan(server: Server) -> None:
    """Have the server look into its folders of LoRAs and embeddings now. Needs an operator's token.

    Examples:
    cp ink.safetensors loras/ && darkroom rescan
    """
    from darkroom_client._sync import Client

    with Client(**server.keywords()) as client:
        changes = client.rescan_assets()
    for each in changes:
        why = f": {each.detail}" if each.detail else ""
        typer.echo(f"{each.kind} {each.name} {each.what or 'changed'}{why}")
    if not changes:
        typer.echo("nothing has changed since the server's last look")
