"""`darkroom top`: a server's jobs, batches and memory, as they change."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from darkroom_client.cli._groups import with_option_groups
from darkroom_client.cli._options import Server

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

    from darkroom_client._aio import AsyncClient
    from darkroom_client.cli._top_view import Frame

_PATIENCE = 5.0  # seconds for an answer


@with_option_groups
def top(
    server: Server,
    interval: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="Between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Take one look, and end.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, a line a look; null while the server does not answer.")
    ] = False,
) -> None:
    """Show a server at work: jobs, batches, models in memory, streams. q or Ctrl-C ends.

    An operator's token shows the jobs of all clients, another one its own. In a pipe it takes one look.

    Examples:
    darkroom top
    darkroom top --interval 5
    darkroom top --once --json | jq .load.queued_jobs
    """
    from rich.console import Console

    from darkroom_client._aio import AsyncClient

    client, console = AsyncClient(**server.keywords() | {"retries": 0}), Console()
    with suppress(KeyboardInterrupt):
        if once or not (as_json or console.is_terminal):
            asyncio.run(_once(client, console, as_json))
        elif as_json:
            asyncio.run(_lines(client, interval))
        else:
            asyncio.run(_live(client, console, interval))


async def _look(client: "AsyncClient") -> "Frame":
    """What the server says now.

    :raises DarkroomError: it does not say it, or not within _PATIENCE.
    """
    from darkroom_client.cli._top_view import Frame
    from darkroom_client.errors import NotImplementedYet, PermissionDenied, ServerUnreachable

    load = None
    try:
        async with asyncio.timeout(_PATIENCE):
            with suppress(PermissionDenied, NotImplementedYet):  # a user's token, or an older server
                load = await client.server_load()
            return Frame(client.address, load, await client.models(), await client.jobs(active_only=True))
    except TimeoutError:
        raise ServerUnreachable(f"the Darkroom server at {client.address} does not answer") from None


async def _once(client: "AsyncClient", console: "Console", as_json: bool) -> None:
    from darkroom_client.cli._json import print_line
    from darkroom_client.cli._top_view import drawn

    async with client:
        frame = await _look(client)
    if as_json:
        print_line(frame)
        return
    width = console.width if console.is_terminal else None
    if width is None:
        console.width = 1000
    console.print(drawn(frame, width=width))


async def _lines(client: "AsyncClient", interval: float) -> None:
    from darkroom_client.cli._json import print_line
    from darkroom_client.errors import Unavailable

    async with client:
        while True:
            try:
                print_line(await _look(client))
            except Unavailable:
                print_line(None)
            await asyncio.sleep(interval)


async def _live(client: "AsyncClient", console: "Console", interval: float) -> None:
    from rich.live import Live

    left = asyncio.Event()
    with _keys(left.set), Live(console=console, screen=True, auto_refresh=False) as live:
        async with client:
            showing = asyncio.ensure_future(_show(client, live, interval))
            leaving = asyncio.ensure_future(left.wait())
            try:
                await asyncio.wait((showing, leaving), return_when=asyncio.FIRST_COMPLETED)
            finally:  # at Ctrl-C, too: else it would ask a client that is closed
                leaving.cancel()
                showing.cancel()  # nothing, if it has failed
                with suppress(asyncio.CancelledError):
                    await showing


async def _show(client: "AsyncClient", live: "Live", interval: float) -> None:
    """Shows one look after the other. While the server is away, the last one, and that it is.

    :raises DarkroomError: the server does not let this client in.
    """
    from darkroom_client.cli._top_view import drawn, trouble
    from darkroom_client.errors import Unavailable

    before: Frame | None = None
    frame: Frame | None = None
    while True:
        try:
            before, frame, words = frame, await _look(client), ""
        except Unavailable as error:
            words = str(error)
        height = live.console.height - 1 if not words else live.console.height - 3
        shown = [drawn(frame, before, height, live.console.width)] if frame is not None else []
        live.update(trouble(words, shown), refresh=True)
        await asyncio.sleep(interval)


@contextmanager
def _keys(leave: Callable[[], None]) -> Iterator[None]:
    """Calls `leave` when q is pressed, where the input is a terminal; Ctrl-C is a signal."""
    if not sys.stdin.isatty() or sys.platform == "win32":
        yield
        return
    import os
    import termios
    import tty

    descriptor, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(descriptor)

    def read() -> None:
        keys = os.read(descriptor, 1024)
        if not keys or b"q" in keys.lower():  # nothing: the terminal is gone
            leave()

    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, read)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
