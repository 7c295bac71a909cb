"""Errors of the commands, as the client's commands print theirs."""

from __future__ import annotations

from typing import NoReturn

import typer

USAGE = 2  # exit code of a wrong option, and of a wrong setting


def print_errors(*messages: str) -> None:
    """Print errors to stderr."""
    for message in messages:
        typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)


def fail(*messages: str, status: int = 1) -> NoReturn:
    """Print errors, and exit.

    :raises typer.Exit: always
    """
    print_errors(*messages)
    raise typer.Exit(status)
