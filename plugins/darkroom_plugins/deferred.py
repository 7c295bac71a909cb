"""Libraries that take seconds to import, imported when they are first used: `darkroom check` does without them.

Write `from darkroom_plugins.deferred import torch` in place of `import torch`. Names of theirs that are needed when a
module is imported, as base classes are, would import them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
    from torch import nn as nn
else:

    class _Deferred:
        """A module that is imported when an attribute of it is first read. From then on it has the module's own
        attributes, so that reading them costs no more than of the module."""

        __slots__ = ("__dict__", "_name")

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            module = import_module(self._name)
            self.__dict__ = module.__dict__
            return getattr(module, attribute)

    torch, nn = _Deferred("torch"), _Deferred("torch.nn")
