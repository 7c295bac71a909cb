"""`darkroom ui`."""

import socket
from pathlib import Path
from typing import Annotated, Any

import typer

from darkroom_client.cli._groups import with_option_groups
from darkroom_client.cli._options import Server
from darkroom_client.cli._report import fail, print_warning
from darkroom_client.cli._values import usage_error
from darkroom_client.cli._words import in_options_words

_PATIENCE = 60.0  # seconds, for a server that starts


@with_option_groups
def ui(
    server: Server,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where the page is served, for browsers.")
    ] = "127.0.0.1:7860",
    login: Annotated[
        str | None,
        typer.Option(envvar="DARKROOM_UI_LOGIN", metavar="NAME:PASSWORD", help="What the page asks its visitors for."),
    ] = None,
    wildcards: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, metavar="DIR", help="Folder of NAME.txt with a text a line for each __NAME__."
        ),
    ] = None,
) -> None:
    """Serve a page that makes pictures on a Darkroom server, for browsers.

    Needs the extra `ui`. Whoever opens the page uses the server with this command's token, and does not see it.

    Examples:
    darkroom ui
    darkroom ui --listen 127.0.0.1:8000 --wildcards words
    darkroom ui --address gpu.example.org:50051 --tls-ca ca.pem --token "$TOKEN" --login me:secret
    """
    from darkroom_client._address import is_loopback

    host, port = _host_and_port(listen)
    _try_to_listen(host, port)
    visitor = _name_and_password(login)
    if visitor is None and not is_loopback(listen):
        print_warning(
            f"whoever can open {listen} makes pictures with this command's token: --login asks for a password"
        )
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        fail(f"`darkroom ui` needs the extra `ui` ({error}): pip install 'darkroom-diffusion[ui]'")

    from darkroom_client.ui.app import serve

    keywords = server.keywords()

    def ready(url: str) -> None:
        typer.echo(f"Darkroom's page is on {url}", err=True)
        _warn_of_server(server.keywords())

    serve(keywords.pop("address"), keywords, host, port, ready, login=visitor, wildcards=wildcards)


def _warn_of_server(keywords: dict[str, Any]) -> None:
    """Says what is wrong with the server, which may be started or mended while the page is there."""
    from darkroom_client._sync import Client
    from darkroom_client.errors import DarkroomError

    with Client(**{**keywords, "retries": 0}) as client:
        try:
            client.wait_for_server(_PATIENCE)
            client.server_info()
        except DarkroomError as error:
            print_warning(in_options_words(error))


def _try_to_listen(host: str, port: int) -> None:
    """:raises typer.Exit: if nobody can, for which Gradio would give reasons of its own"""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        fail(f"cannot listen on {host}:{port}: {error.strerror}")


def _name_and_password(login: str | None) -> tuple[str, str] | None:
    """:raises typer.BadParameter: if one of them is missing"""
    if login is None:
        return None
    name, _, password = login.partition(":")
    if not name or not password:
        usage_error("--login", "must be NAME:PASSWORD")
    return name, password


def _host_and_port(listen: str) -> tuple[str, int]:
    """:raises InvalidOptions, typer.BadParameter: if it has another form"""
    from darkroom_client._address import checked_address

    host, _, port = checked_address(listen, "--listen").rpartition(":")
    if host in ("unix", "unix-abstract") or not port.isdecimal():
        usage_error("--listen", "a page for browsers is on HOST:PORT, not on a unix socket")
    return host.strip("[]"), int(port)
