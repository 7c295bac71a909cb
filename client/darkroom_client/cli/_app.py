"""The root of the command line: the client's commands, and those of other packages through entry points.

An entry point of the group `darkroom.commands` names a plain function; `models.pull` is the command `pull` below the
client's `models`. Its parameters, annotated for typer, are the command's options; its docstring is the help, with lines
below `Examples:` at its end. Commands are imported on first use.
"""

import functools
import importlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import typer.core
from typer.main import get_command_from_info
from typer.models import CommandInfo

from darkroom_client._text import did_you_mean
from darkroom_client.cli._report import USAGE, fail, handle_errors, print_error

if TYPE_CHECKING:
    from importlib import metadata

_GROUP = "darkroom.commands"
_UsageError: Any = typer.BadParameter.__base__  # click's, which newer versions of Typer hold under a private name
_OWN = {  # the client's commands: module and function
    "generate": "_generate:generate",
    "edit": "_generate:edit",
    "compare-schedulers": "_compare:compare_schedulers",
    "preprocess": "_preprocess:preprocess",
    "ui": "_ui:ui",
    "jobs": "_kept_jobs:jobs",
    "top": "_top:top",
    "watch": "_kept_jobs:watch",
    "result": "_kept_jobs:result",
    "cancel": "_kept_jobs:cancel",
    "info": "_info:info",
    "health": "_health:health",
    "models": "_catalog:models",
    "tasks": "_catalog:tasks",
    "schedulers": "_catalog:schedulers",
    "loras": "_catalog:loras",
    "controlnets": "_catalog:controlnets",
    "preprocessors": "_catalog:preprocessors",
    "load": "_residency:load",
    "unload": "_residency:unload",
    "rescan": "_residency:rescan",
}


class _Commands(typer.core.TyperGroup):
    """The client's commands, then those of entry points."""

    @functools.cached_property
    def _entry_points(self) -> "dict[str, metadata.EntryPoint]":
        """By name; the first of a name wins. Cached, as the look-up scans every installed distribution."""
        from importlib import metadata  # slow to import

        return {point.name: point for point in reversed([*metadata.entry_points(group=_GROUP)])}

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """As Typer's, but wrong options are printed as every error is, not in a frame that is cut at 80 columns."""
        try:
            sys.exit(super().main(*args, **{**extra, "standalone_mode": False}))
        except _UsageError as error:
            print_error(error.format_message())
            if error.ctx is not None:
                typer.echo(f"`{error.ctx.command_path} -h` shows the options.", err=True)
            sys.exit(USAGE)

    def list_commands(self, ctx: Any) -> list[str]:
        return [*_OWN, *sorted(name for name in self._entry_points.keys() - _OWN.keys() if "." not in name)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands:
            if cmd_name in _OWN:
                command = _command(cmd_name, handle_errors(_load_own(_OWN[cmd_name])))
                start = f"{cmd_name}."
                below = {n.removeprefix(start): p for n, p in self._entry_points.items() if n.startswith(start)}
                self.commands[cmd_name] = _Parent(command, below) if below else command
            elif cmd_name in self._entry_points:
                self.commands[cmd_name] = _command(cmd_name, _load(self._entry_points[cmd_name]))
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            known = self.list_commands(ctx)
            ctx.fail(f"There is no command {name!r}{did_you_mean(name, known)}. There are: {', '.join(known)}.")
        return super().resolve_command(ctx, args)


class _Parent(typer.core.TyperGroup):
    """A command with others below it."""

    def __init__(self, command: Any, below: "dict[str, metadata.EntryPoint]") -> None:
        super().__init__(
            name=command.name,
            params=command.params,
            help=command.help,
            epilog=command.epilog,
            invoke_without_command=True,
            rich_markup_mode="rich",
        )
        self._own, self._below = command.callback, below

    def invoke(self, ctx: Any) -> Any:
        self.callback = self._own
        return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        self.callback = None  # one below is meant
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self._below)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        point = self._below.get(cmd_name)
        return _command(cmd_name, _load(point)) if point is not None else None


def _command(name: str, function: Callable[..., Any]) -> Any:
    help_text, _, examples = (function.__doc__ or "").partition("Examples:\n")
    info = CommandInfo(
        name=name, callback=function, cls=typer.core.TyperCommand, help=help_text.strip(), epilog=_epilog(examples)
    )
    command: Any = get_command_from_info(info, pretty_exceptions_short=True, rich_markup_mode="rich")
    return command


def _epilog(examples: str) -> str | None:
    lines = [line.strip().replace("[", "\\[") for line in examples.splitlines() if line.strip()]
    return "\n\n".join(["[bold]Examples[/bold]", *(f"  {line}" for line in lines)]) if lines else None


def _load_own(place: str) -> Callable[..., Any]:
    module, _, function = place.partition(":")
    loaded: Callable[..., Any] = getattr(importlib.import_module(f"darkroom_client.cli.{module}"), function)
    return loaded


def _load(point: "metadata.EntryPoint") -> Callable[..., Any]:
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


app = typer.Typer(
    name="darkroom",
    cls=_Commands,
    invoke_without_command=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        import darkroom_client

        typer.echo(f"darkroom {darkroom_client.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Diffusion images from a Darkroom server, with a live preview of every denoising step.

    Start a server with `darkroom serve`, then try `darkroom generate "a red circle on a blue background"`.
    """
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
        raise typer.Exit(USAGE)


def main() -> None:
    """Runs the command line."""
    app()
