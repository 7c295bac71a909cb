"""The plugin contract of Darkroom. What a plugin may import:

| from | what |
| --- | --- |
| `darkroom_plugins` | the names below: `hookimpl`, bases of contributions, arguments of hooks, errors |
| `darkroom_plugins.hookspecs` | the eight hooks, and the life of a sample |
| `darkroom_plugins.latents`, `.canvas`, `.tensors` | helpers for tasks: noise, encoding, fitting pictures |
| `darkroom_plugins.files` | model files: configurations, safetensors, networks on the meta device |
| `darkroom_plugins.fixed_outputs` | layers replaced by a constant output |
| `darkroom_plugins.testing` | unit tests of a contribution, without a server |

A plugin is a module or object whose functions are marked with `hookimpl` and named as in
`darkroom_plugins.hookspecs`; its distribution names it in the entry-point group `darkroom.plugins`.
It declares the version of the contract that it was written for: ``darkroom_api_version = 1``.

`darkroom_plugins.builtin` holds the built-in plugins, written with the above alone: to be read, not imported.
"""

from typing import Any, TypeVar, cast

import pluggy

from darkroom_plugins.contract import (
    Adapter,
    AssetInfo,
    Assets,
    AssetUser,
    BatchContract,
    Conditioner,
    Family,
    Finisher,
    Inspector,
    ModelInfo,
    Preprocessor,
    PreviewDecoder,
    SchedulerEntry,
    Task,
)
from darkroom_plugins.errors import DarkroomError, InvalidRequest, PluginFailed, UnsupportedCombination, Violation
from darkroom_plugins.request import ImageToImage, Inpaint, Outpaint, Request
from darkroom_plugins.sample import Evaluation, Picture, PromptEmbedding, PromptPiece, Row, Sample

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
    "Adapter",
    "AssetInfo",
    "AssetUser",
    "Assets",
    "BatchContract",
    "Conditioner",
    "DarkroomError",
    "Evaluation",
    "Family",
    "Finisher",
    "ImageToImage",
    "Inpaint",
    "Inspector",
    "InvalidRequest",
    "ModelInfo",
    "Outpaint",
    "Picture",
    "PluginFailed",
    "Preprocessor",
    "PreviewDecoder",
    "PromptEmbedding",
    "PromptPiece",
    "Request",
    "Row",
    "Sample",
    "SchedulerEntry",
    "Task",
    "UnsupportedCombination",
    "Violation",
    "hookimpl",
]
