"""`darkroom health`: for the health checks of containers, and for scripts."""

from typing import Annotated

import typer

from darkroom_client.cli._groups import with_option_groups
from darkroom_client.cli._options import Server

Service = Annotated[
    str,
    typer.Option(metavar="NAME", help='Of the API: are pictures made now? "": does the process answer, and go on?'),
]
Timeout = Annotated[float, typer.Option(metavar="SECONDS", help="Time for the answer.")]


@with_option_groups
def health(server: Server, service: Service = "darkroom.v1.ImageService", timeout: Timeout = 5.0) -> None:
    """Exit with 0 if the server is healthy (grpc.health.v1: SERVING), else with 1 and the reason. Needs no token.

    Examples:
    darkroom health
    darkroom health --service ""
    """
    from darkroom_client._sync import Client

    with Client(**server.keywords()) as client:
        client.check_health(service, timeout)
    typer.echo("serving")
