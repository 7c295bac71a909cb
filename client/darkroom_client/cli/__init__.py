"""The command `darkroom`: `main` runs it, `app` is its typer application."""

from darkroom_client.cli._app import app, main

__all__ = ["app", "main"]
