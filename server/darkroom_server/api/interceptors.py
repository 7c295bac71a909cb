"""Interceptors and decorators of RPC handlers: errors to statuses, token authentication, undecodable requests."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from darkroom_plugins.errors import DarkroomError, InvalidRequest, JobFailed
from darkroom_server.api.status import status_of
from darkroom_server.config.settings import TokenSettings
from darkroom_server.errors import PermissionDenied, RequestTooLarge, Unauthenticated

log = logging.getLogger(__name__)

Call = Callable[[Any, Any], Awaitable[Any]]  # with a request and its context
OPEN_METHODS = ("/grpc.health.v1.Health/",)  # health probes have no token
OPERATOR_METHODS = ("/darkroom.v1.CatalogService/LoadModel", "/darkroom.v1.CatalogService/UnloadModel")


def answering_errors(call: Call, method: str) -> Call:
    """The handler with its errors mapped to statuses. Other exceptions than DarkroomError are logged, and hidden from
    the client."""

    async def answering(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
        failure: DarkroomError
        try:
            if isinstance(request, DarkroomError):  # from the deserializer
                raise request
            return await call(request, context)
        except aio.AbortError:
            raise
        except DarkroomError as error:
            failure = error.with_traceback(None)  # its frames would keep the job alive
        except Exception as error:
            if _client_is_gone(error):
                return None
            log.exception("%s failed", method)
            failure = JobFailed("the server failed; its log says more")
        code, message, trailers = status_of(failure)
        log.info("%s: %s: %s", method, code.name, message)
        return await context.abort(code, message, trailers)

    return answering


def _client_is_gone(error: Exception) -> bool:
    """Whether a write failed because the call was cancelled or its connection lost."""
    return type(error).__name__ in ("ExecuteBatchError", "UsageError")


def token_of(metadata: Iterable[tuple[str, Any]] | None) -> str:
    """The token of `authorization: Bearer TOKEN`, the scheme in any case; empty if there is none."""
    authorization = next((str(value) for key, value in metadata or () if key == "authorization"), "")
    scheme, _, token = authorization.strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def owner_of(context: Any) -> str:
    """Whose jobs a call is about: the fingerprint of its token, empty without one."""
    token = token_of(context.invocation_metadata())
    return hashlib.sha256(token.encode()).hexdigest() if token else ""


class TokenCheck(aio.ServerInterceptor):  # type: ignore[misc]
    """Interceptor: requires a configured token, and an operator's for operator methods."""

    def __init__(self, tokens: Sequence[TokenSettings]) -> None:
        self._roles = {bytes.fromhex(each.sha256): each.role for each in tokens}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        handler = await continuation(details)
        role = self._role(token_of(details.invocation_metadata))
        if details.method.startswith(OPEN_METHODS):
            return handler
        if role is None:
            return refusing(Unauthenticated("this server wants a token: authorization: Bearer <token>"))
        if details.method in OPERATOR_METHODS and role != "operator":
            return refusing(PermissionDenied("this call wants an operator's token, and this is a user's"))
        return handler

    def _role(self, token: str) -> str | None:
        """The bearer's role; None if unknown. Constant-time comparison over all tokens."""
        digest = hashlib.sha256(token.encode()).digest()
        roles = [role for known, role in self._roles.items() if hmac.compare_digest(known, digest)]
        return roles[0] if roles and token else None


class ErrorStatuses(aio.ServerInterceptor):  # type: ignore[misc]
    """Interceptor: maps errors of Darkroom's handlers to statuses. Undecodable requests get INVALID_ARGUMENT: gRPC
    would send the exception's text to the client. Requests above `max_bytes` get REQUEST_TOO_LARGE, undecoded."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        handler = await continuation(details)
        if handler is None or handler.request_streaming or not details.method.startswith("/darkroom."):
            return handler
        kind = "unary_stream" if handler.response_streaming else "unary_unary"
        changes = {kind: answering_errors(getattr(handler, kind), details.method)}
        return handler._replace(request_deserializer=self._lenient(handler.request_deserializer), **changes)

    def _lenient(self, deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        """A deserializer that returns the error of a request in place of raising."""

        def lenient(data: bytes) -> Any:
            if len(data) > self._max_bytes:
                sizes = f"has {len(data):,} bytes, and this server takes up to {self._max_bytes:,}"
                return RequestTooLarge(f"the request {sizes}")
            try:
                return deserialize(data)
            except DecodeError:
                return InvalidRequest(message="the request is not a message of this API")

        return lenient


def refusing(error: DarkroomError) -> grpc.RpcMethodHandler:
    """A handler for any method that refuses without reading: the handler of a unary request would be called after all
    of it has been received."""

    async def refuse(requests: Any, context: Any) -> None:
        raise error

    return grpc.stream_stream_rpc_method_handler(answering_errors(refuse, "refusal"))
