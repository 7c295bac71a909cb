"""What all RPC handlers have in common: how they answer errors, and who may call."""

from __future__ import annotations

import functools
import hmac
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from darkroom_plugins.errors import DarkroomError, InvalidRequest, JobFailed, NotImplementedYet, Unauthenticated
from darkroom_server.status import status_of

log = logging.getLogger(__name__)

Handler = Callable[[Any, Any, Any], Awaitable[Any]]
UNDECODABLE = object()  # stands for a request that is no message
OPEN_METHODS = ("/grpc.health.v1.Health/",)  # for probes, which have no token


def answers_errors(handler: Handler) -> Handler:
    """A handler whose errors become statuses. What is not ours is logged, and hidden from the client."""

    @functools.wraps(handler)
    async def answering(service: Any, request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
        failure: DarkroomError
        try:
            return await handler(service, request, context)
        except aio.AbortError:
            raise
        except DarkroomError as error:
            failure = error.with_traceback(None)  # which would keep the job
        except Exception as error:
            if _client_is_gone(error):
                return None
            log.exception("%s failed", handler.__name__)
            failure = JobFailed("the server failed; its log says more")
        code, message, trailers = status_of(failure)
        return await context.abort(code, message, trailers)

    return answering


def _client_is_gone(error: Exception) -> bool:
    """Whether a write failed because the call was cancelled, or its connection lost."""
    return type(error).__name__ in ("ExecuteBatchError", "UsageError")


def not_there_yet(what: str) -> Handler:
    """A handler for an RPC whose work is not there yet."""

    @answers_errors
    async def handler(service: Any, request: Any, context: Any) -> None:
        raise NotImplementedYet(message=f"{what} not there yet")

    return handler


class TokenCheck(aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls that do not bring the server's bearer token."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        given = next((value for key, value in details.invocation_metadata if key == "authorization"), "")
        if details.method.startswith(OPEN_METHODS) or hmac.compare_digest(given.encode(), self._expected):
            return await continuation(details)
        handler = await continuation(details)
        return _refusing(handler)


class DecodeCheck(aio.ServerInterceptor):  # type: ignore[misc]
    """Answers bytes that are no message in our words; gRPC would tell the client of the exception."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        handler = await continuation(details)
        if handler is None or not details.method.startswith("/darkroom."):
            return handler
        kind = "unary_stream" if handler.response_streaming else "unary_unary"
        changes = {kind: _decoded_only(getattr(handler, kind))}
        return handler._replace(request_deserializer=_lenient(handler.request_deserializer), **changes)


def _lenient(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Gives UNDECODABLE instead of an exception."""

    def lenient(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return UNDECODABLE

    return lenient


def _decoded_only(call: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    @answers_errors
    async def checked(service: Any, request: Any, context: Any) -> Any:
        if request is UNDECODABLE:
            raise InvalidRequest(message="the request is not a message of this API")
        return await call(request, context)

    return functools.partial(checked, None)


def _refusing(handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
    @answers_errors
    async def refuse(service: Any, request: Any, context: Any) -> None:
        raise Unauthenticated("this server wants a token: authorization: Bearer <token>")

    call = functools.partial(refuse, None)
    if handler is None or handler.request_streaming:
        return grpc.stream_stream_rpc_method_handler(call)
    kind = grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
    return kind(call, handler.request_deserializer, handler.response_serializer)
