"""Fills protobuf messages from Python values: names for enums, dictionaries for JSON, pictures for bytes."""

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from darkroom.v1 import parameters_pb2
from darkroom_client._enums import value_number
from darkroom_client._pictures import image_bytes
from darkroom_client._text import os_error
from darkroom_client.errors import Violation
from darkroom_client.options import LoraSpec

# What a field of each type takes.
_KINDS = {
    FieldDescriptor.CPPTYPE_INT32: "a whole number that fits 32 bits",
    FieldDescriptor.CPPTYPE_UINT32: "a whole number from 0 that fits 32 bits",
    FieldDescriptor.CPPTYPE_INT64: "a whole number that fits 64 bits",
    FieldDescriptor.CPPTYPE_UINT64: "a whole number from 0 that fits 64 bits",
    FieldDescriptor.CPPTYPE_FLOAT: "a number",
    FieldDescriptor.CPPTYPE_DOUBLE: "a number",
    FieldDescriptor.CPPTYPE_BOOL: "true or false",
    FieldDescriptor.CPPTYPE_ENUM: "one of its names or numbers",
    FieldDescriptor.CPPTYPE_STRING: "a text",
}


def fill(message: Any, values: Mapping[str, Any], path: str) -> list[Violation]:
    """Sets the fields in `values` and returns the violations. `path` is the message's own path in the request.

    None leaves a field unchanged. Values replace a field's content; a map is updated key by key.
    """
    violations: list[Violation] = []
    for name, value in values.items():
        where = f"{path}.{name}" if path else name
        field = message.DESCRIPTOR.fields_by_name.get(name)
        if field is None:
            violations.append(Violation(where, f"is not a field of {message.DESCRIPTOR.name}"))
        elif value is not None:
            violations += _violations(_set, message, field, value, where)
    return violations


def _violations(setter: Callable[..., list[Violation]], *args: Any) -> list[Violation]:
    """A setter's violations; its exception is one, too. Its last argument is the path."""
    try:
        return setter(*args)
    except OSError as error:
        return [Violation(args[-1], os_error(error))]
    except (TypeError, ValueError, json_format.ParseError) as error:
        return [Violation(args[-1], str(error))]


def _set(message: Any, field: FieldDescriptor, value: Any, where: str) -> list[Violation]:
    if _is_map(field):
        return _set_map(getattr(message, field.name), value, where)
    if field.message_type is not None and field.is_repeated:
        message.ClearField(field.name)
        return _set_repeated(getattr(message, field.name), field, value, where)
    if field.message_type is not None:
        message.ClearField(field.name)
        return _set_message(getattr(message, field.name), value, where)
    value = _scalar(field, value)
    try:
        setattr(message, field.name, value)
    except (TypeError, ValueError) as error:  # worded for programmers of C
        raise ValueError(f"must be {_KINDS[field.cpp_type]}, not {reprlib.repr(value)}") from error
    return []


def _set_map(target: Any, values: Mapping[str, Any], where: str) -> list[Violation]:
    violations: list[Violation] = []
    for key, value in values.items():
        target[key].Clear()
        violations += _violations(_set_message, target[key], value, f"{where}[{key!r}]")
    return violations


def _set_repeated(target: Any, field: Any, values: Any, where: str) -> list[Violation]:
    first, second = (each.name for each in field.message_type.fields[:2])
    if isinstance(values, Mapping):  # such as {"LoRA name": weight}
        values = [{first: key, second: value} for key, value in values.items()]
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"must be a sequence, not {type(values).__name__}")
    violations: list[Violation] = []
    for index, value in enumerate(values):
        violations += _violations(_set_message, target.add(), value, f"{where}[{index}]")
    return violations


def _set_message(target: Any, value: Any, where: str) -> list[Violation]:
    target.SetInParent()
    if isinstance(value, Message):
        target.CopyFrom(value)
        return []
    if isinstance(target, Struct):
        json_format.ParseDict(dict(value), target)
        return []
    return fill(target, _mapping(target, value), where)


def _mapping(target: Any, value: Any) -> Mapping[str, Any]:
    """`value` as fields by name. A string is the message's first field, as in scheduler="euler"; so is the number of
    hires_fix=2."""
    if isinstance(value, str) and target.DESCRIPTOR is parameters_pb2.LoraSpec.DESCRIPTOR:
        value = LoraSpec.parse(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, str) or (number and target.DESCRIPTOR.fields[0].type == FieldDescriptor.TYPE_DOUBLE):
        return {target.DESCRIPTOR.fields[0].name: value}
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return value
    raise TypeError(f"cannot be made from {type(value).__name__}")


def _scalar(field: FieldDescriptor, value: Any) -> Any:
    if field.enum_type is not None and isinstance(value, str):
        return value_number(field.enum_type, value)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return image_bytes(value)
    return value


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)
