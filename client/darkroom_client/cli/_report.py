"""What the commands say when something goes wrong: one clean message and an exit code, never a traceback."""

import functools
import os
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

import typer

from darkroom_client.errors import DarkroomError

INTERRUPTED = 130  # as shells count it: 128 + SIGINT
_P = ParamSpec("_P")
_R = TypeVar("_R")


def reported(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """A command whose failures end it with a message: exit code 1, or 130 when it was interrupted."""

    @functools.wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return command(*args, **kwargs)
        except BrokenPipeError:  # whoever read our output has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except (DarkroomError, OSError) as error:
            fail(str(error))
        except KeyboardInterrupt:
            typer.secho("interrupted", fg=typer.colors.YELLOW, err=True)
            raise typer.Exit(INTERRUPTED) from None

    return run


def complain(message: str) -> None:
    """Writes an error to stderr."""
    typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)


def warn(message: str) -> None:
    """Writes a warning to stderr."""
    typer.secho(f"warning: {message}", fg=typer.colors.YELLOW, err=True)


def fail(message: str) -> NoReturn:
    """Ends the command with an error.

    :raises typer.Exit: always, with exit code 1.
    """
    complain(message)
    raise typer.Exit(1)
