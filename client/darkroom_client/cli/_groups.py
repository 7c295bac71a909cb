"""Option groups: dataclasses of options that several commands share."""

import inspect
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_args, get_type_hints

from typer.models import OptionInfo


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Flattens a command's option groups into options for typer.

    A group is a dataclass whose fields are annotated for typer and have defaults. Its attribute `panel`, if any, is
    their heading in `--help`. Names must be unique across groups.
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
    """The parameter itself, or the fields of its group."""
    group: Any = parameter.annotation
    if not is_dataclass(group):
        yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        return
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        kind, *rest = get_args(hints[field.name])
        info = copy(next(each for each in rest if isinstance(each, OptionInfo)))  # a copy, as groups share some
        info.rich_help_panel = getattr(group, "panel", None)
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=Annotated[kind, info]
        )
