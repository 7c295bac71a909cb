"""Libraries that take seconds to import, imported when they are first used: `darkroom check` does without them.

Write `from darkroom_plugins.deferred import torch` in place of `import torch`. Names of theirs that are needed when a
module is imported, as base classes are, would import them.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
    from torch import nn as nn
else:

    class _Deferred(ModuleType):
        """A module that is imported when an attribute of it is first read."""

        def __getattr__(self, name: str) -> Any:
            return getattr(sys.modules.get(self.__name__) or import_module(self.__name__), name)

    torch, nn = _Deferred("torch"), _Deferred("torch.nn")
