"""`darkroom ui`."""

from typing import Annotated

import typer

from darkroom_client.cli._groups import with_option_groups
from darkroom_client.cli._options import Server
from darkroom_client.cli._report import fail, print_warning
from darkroom_client.cli._values import usage_error


@with_option_groups
def ui(
    server: Server,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where the page is served, for browsers.")
    ] = "127.0.0.1:7860",
) -> None:
    """Serve a page that makes pictures on a Darkroom server, for browsers.

    Needs the extra `ui`. Whoever opens the page uses the server with this command's token.

    Examples:
    darkroom ui
    darkroom ui --address gpu.example.org:50051 --token "$TOKEN"
    darkroom ui --listen 127.0.0.1:8000
    """
    from darkroom_client._address import is_local

    host, port = _host_and_port(listen)
    if not is_local(listen):
        print_warning(f"whoever can open {listen} makes pictures with this command's token")
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        fail(f"`darkroom ui` needs the extra `ui` ({error}): pip install 'darkroom-diffusion[ui]'")

    from darkroom_client.ui.app import serve

    keywords = server.keywords()
    serve(
        keywords.pop("address"), keywords, host, port, lambda url: typer.echo(f"Darkroom's page is on {url}", err=True)
    )


def _host_and_port(listen: str) -> tuple[str, int]:
    """:raises typer.BadParameter: if it has another form"""
    from darkroom_client._address import checked_address
    from darkroom_client.errors import InvalidOptions

    try:
        host, _, port = checked_address(listen, "--listen").rpartition(":")
        return host.strip("[]"), int(port)
    except (InvalidOptions, ValueError) as error:
        usage_error("--listen", str(error))
