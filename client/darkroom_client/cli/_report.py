"""Errors and warnings of the commands: a message on stderr and an exit code, no traceback."""

import functools
import os
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

import typer

from darkroom_client._text import os_error
from darkroom_client.cli._words import in_options_words
from darkroom_client.errors import DarkroomError, InvalidOptions

USAGE = 2  # exit code of click for a wrong option
INTERRUPTED = 130  # exit code of shells: 128 + SIGINT
_P = ParamSpec("_P")
_R = TypeVar("_R")


def handle_errors(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """Wraps a command: errors exit with a message and code 1, wrong options with 2, interrupts with 130."""

    @functools.wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return command(*args, **kwargs)
        except BrokenPipeError:  # the reader of stdout is gone, as in `darkroom models | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except InvalidOptions as error:
            print_error(in_options_words(error))
            raise typer.Exit(USAGE) from None
        except DarkroomError as error:
            fail(in_options_words(error))
        except OSError as error:
            fail(os_error(error))
        except KeyboardInterrupt:
            typer.secho("interrupted", fg=typer.colors.YELLOW, err=True)
            raise typer.Exit(INTERRUPTED) from None

    return run


def print_error(message: str) -> None:
    """Prints an error to stderr."""
    typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)


def print_warning(message: str) -> None:
    """Prints a warning to stderr."""
    typer.secho(f"warning: {message}", fg=typer.colors.YELLOW, err=True)


def fail(message: str) -> NoReturn:
    """Prints an error and exits.

    :raises typer.Exit: always, with exit code 1.
    """
    print_error(message)
    raise typer.Exit(1)
