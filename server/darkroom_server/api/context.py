"""What the handlers of the API ask of a call. gRPC's own context has it, and that of in-process calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

TRACE_HEADERS = ("traceparent", "tracestate")  # of W3C Trace Context


class CallContext(Protocol):
    """The call that a handler answers."""

    def invocation_metadata(self) -> Sequence[tuple[str, Any]] | None:
        """The metadata, or headers, that came with the call; keys in lower case."""

    def peer(self) -> str:
        """Who calls, for instance ``ipv4:127.0.0.1:40000``."""

    def time_remaining(self) -> float | None:
        """Seconds until the call's deadline; None if it has none."""

    async def read(self) -> Any:
        """The next request of a handler that takes a stream; `grpc.aio.EOF` after the last."""

    async def write(self, message: Any) -> None:
        """Send a message of a streamed answer; returns when there is room for the next."""

    async def abort(self, code: Any, details: str = "", trailing_metadata: Sequence[tuple[str, Any]] = ()) -> Any:
        """End the call with a status, by an exception."""


def trace_headers(context: CallContext) -> dict[str, str]:
    """Those that came with a call: which span of its caller's it belongs to."""
    return {key: str(value) for key, value in context.invocation_metadata() or () if key in TRACE_HEADERS}
