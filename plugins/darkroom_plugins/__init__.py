"""The plugin contract of Darkroom, and its built-in plugins.

A plugin is a module or object whose functions are marked with `hookimpl` and named as in
`darkroom_plugins.hookspecs`; its distribution names it in the entry-point group `darkroom.plugins`.
It declares the contract's version it was written for: ``darkroom_api_version = 1``.
"""

from typing import Any, TypeVar, cast

import pluggy

from darkroom_plugins.errors import DarkroomError, InvalidRequest, PluginFailed, UnsupportedCombination, Violation

API_VERSION = 1
ENTRY_POINT_GROUP = "darkroom.plugins"

_F = TypeVar("_F")


def hookimpl(function: _F) -> _F:
    """Mark a function as the implementation of the hook of its name."""
    marker: Any = pluggy.HookimplMarker("darkroom")
    return cast(_F, marker(function))


__all__ = [
    "API_VERSION",
    "ENTRY_POINT_GROUP",
    "DarkroomError",
    "InvalidRequest",
    "PluginFailed",
    "UnsupportedCombination",
    "Violation",
    "hookimpl",
]
