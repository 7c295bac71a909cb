"""The root of the command line: the client's commands, and those of other packages through entry points.

An entry point of the group `darkroom.commands` names a plain function. Its parameters, annotated for typer, are the
command's options; its docstring is the help.
"""

import functools
from collections.abc import Callable
from importlib import metadata
from typing import Any

import typer
import typer.core
from typer.main import get_command_from_info
from typer.models import CommandInfo

from darkroom_client.cli import _catalog, _compare, _generate, _preprocess, _residency
from darkroom_client.cli._report import fail, handle_errors

_GROUP = "darkroom.commands"


class _Commands(typer.core.TyperGroup):
    """The client's commands, then those of entry points, which are loaded on first use."""

    @functools.cached_property
    def _entry_points(self) -> dict[str, metadata.EntryPoint]:
        """By name; the first of a name wins. Cached, as the look-up scans every installed distribution."""
        return {point.name: point for point in reversed([*metadata.entry_points(group=_GROUP)])}

    def list_commands(self, ctx: Any) -> list[str]:
        own = list(self.commands)
        return own + sorted(name for name in self._entry_points if name not in own)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        point = self._entry_points.get(cmd_name) if own is None else None
        return own if point is None else _plugin_command(point)


def _plugin_command(point: metadata.EntryPoint) -> Any:
    info = CommandInfo(name=point.name, callback=_load(point), cls=typer.core.TyperCommand)
    command: Any = get_command_from_info(info, pretty_exceptions_short=True, rich_markup_mode="rich")
    return command


def _load(point: metadata.EntryPoint) -> Callable[..., Any]:
    """The entry point's function, or a stand-in that says what to install."""
    try:
        function = point.load()
    except ModuleNotFoundError as error:
        return _stand_in(point.name, error)

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except ModuleNotFoundError as error:
            return _stand_in(point.name, error)()

    return handle_errors(command)


def _stand_in(name: str, error: ModuleNotFoundError) -> Callable[[], None]:
    if (error.name or "").partition(".")[0] in {"darkroom_client", "darkroom_plugins"}:
        raise error  # a bug in one of our packages, not a missing dependency

    def command() -> None:
        fail(f"`darkroom {name}` needs the server ({error}): pip install 'darkroom-diffusion[server]'")

    command.__doc__ = "Needs the server: pip install 'darkroom-diffusion\\[server]'."
    return command


_HELP = """Diffusion images from a Darkroom server, with a live preview of every denoising step.

Start a server with `darkroom serve`, then try `darkroom generate "a red circle on a blue background"`."""

app = typer.Typer(
    name="darkroom",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help=_HELP,
)
app.command("generate")(handle_errors(_generate.generate))
app.command("edit")(handle_errors(_generate.edit))
app.command("compare-schedulers")(handle_errors(_compare.compare_schedulers))
app.command("preprocess")(handle_errors(_preprocess.preprocess))
app.command("load")(handle_errors(_residency.load))
app.command("unload")(handle_errors(_residency.unload))
for _name, _list in _catalog.commands().items():
    app.command(_name)(handle_errors(_list))


def main() -> None:
    """Runs the command line."""
    app()
