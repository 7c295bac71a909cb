"""Groups of options that several commands share: each is a dataclass, written once."""

import inspect
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_args, get_type_hints

from typer.models import OptionInfo


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command for typer out of one that takes groups: for typer, a group's fields are options like all others.

    A group is a dataclass whose fields are annotated for typer, each with a default; its `panel`, where it has one, is
    the heading under which `--help` shows them. All names must differ.
    """
    parameters = inspect.signature(command, eval_str=True).parameters.values()
    groups: dict[str, Any] = {each.name: each.annotation for each in parameters if is_dataclass(each.annotation)}

    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    flat = [option for each in parameters for option in _options(each)]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {option.name: option.annotation for option in flat}
    run.__dict__["__signature__"] = inspect.Signature(flat)
    return run


def _options(parameter: inspect.Parameter) -> Iterator[inspect.Parameter]:
    """What typer is to see of a parameter."""
    group: Any = parameter.annotation
    if not is_dataclass(group):
        yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        return
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        kind, *rest = get_args(hints[field.name])
        info = copy(next(each for each in rest if isinstance(each, OptionInfo)))  # others share the original
        info.rich_help_panel = getattr(group, "panel", None)
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=Annotated[kind, info]
        )
