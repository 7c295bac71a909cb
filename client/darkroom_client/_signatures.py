"""Signatures that list the keywords of a `TypedDict`, for `help()` and editors; type checkers read `Unpack` itself."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_args, get_type_hints

_F = TypeVar("_F", bound=Callable[..., Any])


def lists_keywords(function: _F) -> _F:
    """Puts the keywords of `**options: Unpack[…]` in place of `**options` in the signature."""
    signature = inspect.signature(function)
    *others, options = signature.parameters.values()
    (keywords,) = options.annotation.__args__
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_left_out(kind), annotation=kind)
        for name, kind in get_type_hints(keywords).items()
    ]
    function.__dict__["__signature__"] = signature.replace(parameters=[*others, *more])
    return function


def _left_out(kind: Any) -> Any:
    """What stands for a keyword left out: None where it is accepted."""
    return None if type(None) in get_args(kind) else ...
