"""The command `darkroom`."""

from darkroom_client.cli._app import main

__all__ = ["main"]
