"""Events, records and messages as JSON: every field, numbers as numbers, enum values by name."""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from typing import Any

import typer
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from darkroom_client._fields import field_value

_MAX_EXACT = 2**53  # greater integers lose digits where numbers are doubles, as in JavaScript and jq: they become text


def to_json(value: Any) -> Any:
    """A JSON value. Bytes of pictures are left out, unset fields are null."""
    if isinstance(value, Message):
        named = ((field, field_value(value, field)) for field in value.DESCRIPTOR.fields)
        return {field.name: to_json(each) for field, each in named if field.type != FieldDescriptor.TYPE_BYTES}
    if is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: to_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(each) for each in value]
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, int) and abs(value) > _MAX_EXACT else value


def print_json(value: Any) -> None:
    """Prints a JSON value on several lines."""
    typer.echo(json.dumps(to_json(value), indent=2, ensure_ascii=False))


def print_line(value: Any) -> None:
    """Prints a JSON value on one line."""
    typer.echo(json.dumps(to_json(value), ensure_ascii=False))
