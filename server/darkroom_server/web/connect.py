"""Connect and gRPC-Web: all services by their descriptors, so that an RPC that is added is there, too."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from connectrpc.code import Code
from connectrpc.errors import ConnectError, ErrorDetail
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.server import ConnectASGIApplication, Endpoint
from google.protobuf import any_pb2, descriptor_pool, json_format
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2  # noqa: F401 registers what details hold
from protobuf.wkt import Any as PackedAny
from protobuf.wkt import Struct

from darkroom_plugins.errors import InvalidRequest
from darkroom_plugins.quoting import printable
from darkroom_server.api.in_process import Aborted, Caller
from darkroom_server.api.status import status_of
from darkroom_server.web.peers import grpc_peer

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor
    from google.protobuf.message import Message

    from darkroom_server.api.in_process import InProcessCall, InProcessCalls

STREAM_TYPES = {
    (False, False): StreamType.UNARY,
    (False, True): StreamType.SERVER_STREAM,
    (True, False): StreamType.CLIENT_STREAM,
    (True, True): StreamType.BIDI_STREAM,
}
MAX_WORDS = 500  # characters of what the parser says
JSON_BYTES = 3, 2  # a message in JSON has up to 4/3 of its bytes, as base64, and some for names

_call: ContextVar[InProcessCall] = ContextVar("call")  # of the present request


class ConnectDoor(ConnectASGIApplication[None]):
    """An ASGI application that serves these services."""

    path = "/"

    def __init__(self, services: Iterable[str], calls: InProcessCalls, max_bytes: int) -> None:
        """`max_bytes`: of a request, which is a little more than is allowed: what is above has no reason of ours."""
        methods = {
            f"/{service}/{method.name}": method
            for service in services
            for method in descriptor_pool.Default().FindServiceByName(service).methods
        }
        super().__init__(
            service=None,
            endpoints=lambda _: {path: _endpoint(method) for path, method in methods.items()},
            interceptors=[LetIn(calls)],
            read_max_bytes=max_bytes * JSON_BYTES[0] // JSON_BYTES[1],
            compressions=(),  # pictures are compressed
            codecs=[BinaryCodec(), JsonCodec("json"), JsonCodec("json; charset=utf-8")],
        )


class LetIn:
    """Begins the call before the request is read, and ends it however the response ends."""

    def __init__(self, calls: InProcessCalls) -> None:
        self._calls = calls

    async def on_start(self, ctx: Any) -> InProcessCall:
        seconds = None if ctx.timeout_ms is None else ctx.timeout_ms / 1000
        caller = Caller(list(ctx.request_headers.allitems()), grpc_peer(ctx.client_address), seconds)
        method = f"/{ctx.method.service_name}/{ctx.method.name}"
        try:
            call = await self._calls.begin(method, caller)
        except Aborted as error:
            raise connect_error(error) from None
        _call.set(call)
        return call

    async def on_end(self, token: InProcessCall, ctx: Any, error: Exception | None, /) -> None:
        await token.close()


def connect_error(error: Aborted) -> ConnectError:
    """The same error for Connect, with its details."""
    code = Code["CANCELED" if error.code.name == "CANCELLED" else error.code.name]
    return ConnectError(code, error.message, [ReadableDetail(detail) for detail in error.details])


class ReadableDetail(ErrorDetail):
    """A detail that Connect's JSON shows in words, too, beside its base64."""

    def __init__(self, detail: any_pb2.Any) -> None:
        super().__init__(PackedAny(type_url=detail.type_url, value=detail.value))
        words = json_format.MessageToDict(detail)
        words.pop("@type", None)
        self._readable = Struct.from_json(json.dumps(words))

    def value(self, *_: Any) -> Any:
        return self._readable


class BinaryCodec:
    """Passes requests on as they are: the handler's own deserializer reads them."""

    def name(self) -> str:
        return "proto"

    def encode(self, message: Message) -> bytes:
        return message.SerializeToString()

    def decode(self, data: bytes | bytearray, message_class: Any) -> bytes:
        return bytes(data)


class JsonCodec:
    """Protobuf's JSON. Unknown fields are refused: who writes JSON by hand wants to hear of a misspelled one."""

    def __init__(self, name: str) -> None:
        self._name = name

    def name(self) -> str:
        return self._name

    def encode(self, message: Message) -> bytes:
        return json_format.MessageToJson(message, indent=None, ensure_ascii=False).encode()

    def decode(self, data: bytes | bytearray, message_class: Any) -> bytes:
        try:
            message: Message = json_format.Parse(bytes(data) or b"{}", message_class())
        except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
            code, words, trailers = status_of(
                InvalidRequest(message=f"the JSON is not this message: {printable(str(error), MAX_WORDS)}")
            )
            raise connect_error(Aborted(code, words, dict(trailers))) from None
        return message.SerializeToString()


def _endpoint(method: MethodDescriptor) -> Any:
    service = method.containing_service
    assert service is not None
    info: MethodInfo[Any, Any] = MethodInfo(
        name=method.name,
        service_name=service.full_name,
        input=GetMessageClass(method.input_type),
        output=GetMessageClass(method.output_type),
        idempotency_level=IdempotencyLevel.UNKNOWN,
        stream_type=STREAM_TYPES[method.client_streaming, method.server_streaming],
    )
    match info.stream_type:
        case StreamType.UNARY:
            return Endpoint.unary(info, _unary)
        case StreamType.SERVER_STREAM:
            return Endpoint.server_stream(info, _server_stream)
        case StreamType.BIDI_STREAM:
            return Endpoint.bidi_stream(info, _bidi_stream)
    raise NotImplementedError(f"{method.full_name}: streams of requests with one answer")


async def _unary(request: bytes, ctx: Any) -> Any:
    async for message in _server_stream(request, ctx):
        return message
    raise ConnectError(Code.INTERNAL, "the server gave no answer")


async def _server_stream(request: bytes, ctx: Any) -> AsyncIterator[Any]:
    call = _call.get()
    call.send(request)
    try:
        async for message in call.messages():
            yield message
    except Aborted as error:
        raise connect_error(error) from None


async def _bidi_stream(requests: AsyncIterator[bytes], ctx: Any) -> AsyncIterator[Any]:
    """Of HTTP/1.1: the requests come first, then the answers."""
    call = _call.get()
    async for request in requests:
        call.send(request, last=False)
    call.end()
    try:
        async for message in call.messages():
            yield message
    except Aborted as error:
        raise connect_error(error) from None
