"""The command line's root: the client's own commands, and those of other packages, found by entry points.

An entry point of the group `darkroom.commands` names a plain function: its parameters, annotated for typer, are the
command's options, and its docstring is the help.
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
from darkroom_client.cli._report import fail, reported

_GROUP = "darkroom.commands"


class _Commands(typer.core.TyperGroup):
    """The registered commands, then those of entry points, each loaded when it is first asked for."""

    @functools.cached_property
    def _points(self) -> dict[str, metadata.EntryPoint]:
        """By name, of which the first wins; looked up once, as that is a look at every distribution installed."""
        return {point.name: point for point in reversed([*metadata.entry_points(group=_GROUP)])}

    def list_commands(self, ctx: Any) -> list[str]:
        own = list(self.commands)
        return own + sorted(name for name in self._points if name not in own)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        point = self._points.get(cmd_name) if own is None else None
        return own if point is None else _command(point)


def _command(point: metadata.EntryPoint) -> Any:
    info = CommandInfo(name=point.name, callback=_loaded(point), cls=typer.core.TyperCommand)
    command: Any = get_command_from_info(info, pretty_exceptions_short=True, rich_markup_mode="rich")
    return command


def _loaded(point: metadata.EntryPoint) -> Callable[..., Any]:
    """The function of an entry point, or one that says what to install for it."""
    try:
        function = point.load()
    except ModuleNotFoundError as error:
        return _missing(point.name, error)

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except ModuleNotFoundError as error:
            return _missing(point.name, error)()

    return reported(command)


def _missing(name: str, error: ModuleNotFoundError) -> Callable[[], None]:
    if (error.name or "").partition(".")[0] in {"darkroom_client", "darkroom_plugins"}:
        raise error  # not a missing package, but a mistake in one of ours

    def command() -> None:
        fail(f"`darkroom {name}` needs the server ({error}): pip install 'darkroom-diffusion[server]'")

    command.__doc__ = "Needs the server: pip install 'darkroom-diffusion\\[server]'."
    return command


app = typer.Typer(
    name="darkroom",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Darkroom makes pictures with diffusion models, and shows them as they develop.",
)
app.command("generate")(reported(_generate.generate))
app.command("edit")(reported(_generate.edit))
app.command("compare-schedulers")(reported(_compare.compare_schedulers))
app.command("preprocess")(reported(_preprocess.preprocess))
app.command("load")(reported(_residency.load))
app.command("unload")(reported(_residency.unload))
for _name, _list in _catalog.commands().items():
    app.command(_name)(reported(_list))


def main() -> None:
    """Runs the command line."""
    app()
