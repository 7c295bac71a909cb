"""Values of protobuf fields as plain Python: names for enums, tuples, dictionaries for JSON."""

from typing import Any

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from darkroom_client._enums import field_names


def field_value(message: Any, field: Any) -> Any:
    """None if unset, a tuple if repeated, a name for an enum, a dictionary for JSON or a map, else as it is."""
    value = getattr(message, field.name)
    if field.has_presence and not message.HasField(field.name):
        return None
    if field.enum_type is not None:
        names = field_names(message, field.name)
        return tuple(names) if field.is_repeated else names
    if field.is_repeated:
        return {key: _plain(value[key]) for key in value} if hasattr(value, "keys") else tuple(map(_plain, value))
    return _plain(value)


def _plain(value: Any) -> Any:
    return _whole(json_format.MessageToDict(value)) if isinstance(value, Struct) else value


def _whole(value: Any) -> Any:
    """A JSON value with whole numbers as integers: a Struct has doubles only."""
    if isinstance(value, dict):
        return {key: _whole(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
