"""Collector of violations, to refuse a request with all of them at once."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from google.protobuf.struct_pb2 import Struct, Value
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from darkroom_plugins.errors import InvalidRequest, UnsupportedCombination, Violation, no_such
from darkroom_plugins.quoting import printable
from darkroom_server.errors import NotFound

MAX_VIOLATIONS = 50  # gRPC replaces a status with more than some 8 KiB of details by another
MAX_TEXT = 200
MAX_LIST = 1000  # with the names that a server has; once for each kind
MAX_STRUCT = 64 * 1024  # bytes; limits the time to validate


class Findings:
    """Violations, by field path."""

    def __init__(self) -> None:
        self._invalid: list[Violation] = []
        self._unknown: list[tuple[str, Violation]] = []
        self._unsupported: list[Violation] = []

    def invalid(self, path: str, problem: str) -> None:
        """An invalid value."""
        self._invalid.append(_violation(path, problem))

    def unknown(self, kind: str, path: str, name: str, known: Iterable[str]) -> None:
        """A name unknown to the server. The first of a kind lists those that are known."""
        listed = all(kind != other for other, _ in self._unknown)
        problem = no_such(kind, name, known, listed=listed)
        self._unknown.append((kind, _violation(path, problem, MAX_LIST)))

    def unsupported(self, path: str, problem: str) -> None:
        """A combination that the model does not support."""
        self._unsupported.append(_violation(path, problem))

    def check_range(self, path: str, value: float, low: float, high: float, unit: str = "") -> None:
        """Reports a number outside [low, high], or NaN."""
        if not low <= value <= high:
            self.invalid(path, f"must be from {low} to {high}{unit and ' ' + unit}, not {value}")

    def number(self, path: str, given: Any, field: str, default: float, low: float, high: float, unit: str = "") -> Any:
        """A checked number of a message; the default if unset."""
        descriptor = given.DESCRIPTOR.fields_by_name[field]
        if descriptor.has_presence and not given.HasField(field):
            return default
        value = getattr(given, field)
        self.check_range(f"{path}.{field}", value, low, high, unit)
        return value

    def enum(self, path: str, enum: Any, value: int) -> Any:
        """The value's name without its prefix, in kebab-case; None if unset."""
        if value == 0:
            return None
        if value not in enum.values():
            names = ", ".join(_short(enum, name) for name in enum.keys()[1:])
            self.invalid(path, f"must be one of {names}, not {value}")
            return None
        return _short(enum, enum.Name(value))

    def parsed(self, path: str, struct: Struct, parameters: type[BaseModel] | None) -> BaseModel | None:
        """The struct as an instance of its pydantic class; None if invalid, or without a class."""
        if struct.ByteSize() > MAX_STRUCT:
            self.invalid(path, f"must have up to {MAX_STRUCT} bytes")
            return None
        try:
            plain = json.dumps(_plain(struct))
            return parameters.model_validate_json(plain, strict=True) if parameters else None
        except ValidationError as error:
            for each in error.errors(include_url=False, include_context=False):
                known = parameters.model_fields if parameters else ()
                self.invalid(".".join([path, *map(str, each["loc"])]), problem_of(each, known))
        except ValueError as error:
            self.invalid(path, str(error))
        return None

    def refuse(self) -> None:
        """Raise one error with all violations, if there are any.

        :raises InvalidRequest, NotFound, UnsupportedCombination: the first kind found, with the violations of all
            kinds
        """
        every = [*self._invalid, *(v for _, v in self._unknown), *self._unsupported][:MAX_VIOLATIONS]
        if self._invalid:
            raise InvalidRequest(every)
        if self._unknown:
            raise NotFound(self._unknown[0][0], every)
        if self._unsupported:
            raise UnsupportedCombination(every)


def problem_of(error: ErrorDetails, known: Iterable[str] = ()) -> str:
    """What pydantic finds wrong with a client's value, in the words of the other checks. `known`: what may be named at
    the top."""
    if error["type"] == "extra_forbidden":
        at_top = len(error["loc"]) == 1
        return no_such("option", str(error["loc"][-1]), known if at_top else (), listed=at_top)
    words = error["msg"].removeprefix("Value error, ")
    if words.startswith("Input should be "):
        return f"{words.replace('Input should be', 'must be', 1)}, not {json.dumps(error['input'], default=str)}"
    return words


def _violation(path: str, problem: str, limit: int = MAX_TEXT) -> Violation:
    return Violation(printable(path, MAX_TEXT), printable(problem, limit))


def _short(enum: Any, name: str) -> str:
    """A value's name in the one spelling: ``latent-rgb`` for ``PREVIEW_MODE_LATENT_RGB``."""
    return name.removeprefix(enum.Name(0).removesuffix("UNSPECIFIED")).lower().replace("_", "-")


def _plain(struct: Struct) -> dict[str, Any]:
    return {name: _plain_value(value) for name, value in struct.fields.items()}


def _plain_value(value: Value) -> Any:
    """A Struct has doubles only: whole numbers become int.

    :raises ValueError: a number is not finite
    """
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return _plain(value.struct_value)
    if kind == "list_value":
        return [_plain_value(each) for each in value.list_value.values]
    if kind == "number_value":
        if not math.isfinite(value.number_value):
            raise ValueError("every number must be finite")
        return int(value.number_value) if value.number_value.is_integer() else value.number_value
    return None if kind in (None, "null_value") else getattr(value, kind)
