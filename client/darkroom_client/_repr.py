"""Short reprs: what a terminal or a notebook shows of events, records and messages."""

import reprlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from google.protobuf.message import Message

from darkroom_client._fields import field_value


class _Repr(reprlib.Repr):
    """Bytes as their number, messages on one line, long texts and containers cut."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 10
        self.maxstring = self.maxother = 300  # characters
        self.maxdict = self.maxlist = self.maxtuple = 32

    def repr_bytes(self, data: bytes, level: int) -> str:
        return f"<{len(data):,} bytes>"

    repr_bytearray = repr_bytes

    def repr_instance(self, value: Any, level: int) -> str:
        if isinstance(value, Message):
            values = ((field.name, field_value(value, field)) for field, _ in value.ListFields())
            return self.call(value, values)
        if isinstance(value, Mapping):
            return self.repr_dict(dict(value), level)
        return repr(value) if isinstance(value, ShortRepr) else super().repr_instance(value, level)

    def call(self, value: Any, values: Any) -> str:
        """The call that would make `value`."""
        return f"{type(value).__name__}({', '.join(f'{name}={self.repr(each)}' for name, each in values)})"


_short = _Repr()


class ShortRepr:
    """Base of dataclasses with `repr=False`: their usual repr, with values cut short."""

    __slots__ = ()

    def __repr__(self) -> str:
        record: Any = self
        return _short.call(self, ((field.name, getattr(self, field.name)) for field in fields(record)))
