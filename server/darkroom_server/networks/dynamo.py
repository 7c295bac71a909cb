"""torch.compile as networks need it, in the server's process and in the one that compiles for it."""

from __future__ import annotations

import copyreg
import pkgutil
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

# Compiled versions of one code object, which all networks of a class share. Beyond torch's own limit of 8 a network
# runs eagerly for good, and nothing says so.
MAX_VERSIONS = 1024


# Inductor's caches have memory formats in their keys, which pickle otherwise names by the first module of `sys.modules`
# that knows torch: another one in each process, and nothing would be found.
copyreg.pickle(torch.memory_format, lambda each: (pkgutil.resolve_name, (str(each),)))


def compile_lazily(network: nn.Module, **options: Any) -> Callable[..., Any]:
    """Compiled for each kind of call when it comes first, for any number of rows and any size."""
    return torch.compile(network, dynamic=True, **options)


def configure_dynamo() -> None:
    """Raise dynamo's limits, and make hitting them an error, for this thread: recent torch has them by thread. Numbers
    among a network's attributes are constants; else dynamo traces twice, to find that out."""
    from torch._dynamo import config as dynamo
    from torch.fx.experimental import _config

    config: Any = dynamo
    shapes: Any = _config
    limit, fail = "recompile_limit", "fail_on_recompile_limit_hit"
    if not hasattr(config, limit):  # torch 2.6
        limit, fail = "cache_size_limit", "fail_on_cache_limit_hit"
    if getattr(config, limit) != MAX_VERSIONS:
        setattr(config, limit, MAX_VERSIONS)
        setattr(config, f"accumulated_{limit}", sys.maxsize)  # counts those of networks that have gone, too
        setattr(config, fail, True)
        config.specialize_float = True
        shapes.use_duck_shape = False  # else code of a square picture is not that of others


def too_many_versions() -> type[Exception]:
    """What dynamo raises beyond its limits."""
    from torch._dynamo import exc

    found: Any = getattr(exc, "FailOnRecompileLimitHit", None) or vars(exc)["FailOnCacheLimitHit"]  # torch 2.6
    return found  # type: ignore[no-any-return]
