"""Decorators of RPC handlers: errors to statuses, refusals; the token of a call."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc
from grpc import aio

from darkroom_plugins.errors import DarkroomError, JobFailed
from darkroom_server.api.status import status_of

log = logging.getLogger(__name__)

Call = Callable[[Any, Any], Awaitable[Any]]  # with a request and its context


def answering_errors(call: Call, method: str) -> Call:
    """The handler with its errors mapped to statuses. Other exceptions than DarkroomError are logged, and hidden from
    the client."""

    async def answering(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
        failure: DarkroomError
        try:
            return await call(request, context)
        except aio.AbortError:
            raise
        except DarkroomError as error:
            failure = error.with_traceback(None)  # its frames would keep the job alive, as would its causes'
            failure.__cause__ = failure.__context__ = None
        except Exception as error:
            if client_is_gone(error):
                return None
            log.exception("%s failed", method)
            failure = JobFailed("the server failed; its log says more")
        code, message, trailers = status_of(failure)
        log.info("%s: %s: %s", method, code.name, message)
        try:
            return await context.abort(code, message, trailers)
        except Exception as error:
            if client_is_gone(error):
                return None
            raise
        finally:  # gRPC's part of the call keeps what `abort` raises, which has this frame
            del request, context

    return answering


def client_is_gone(error: Exception) -> bool:
    """Whether a write, of a message or the status, failed because the call was cancelled or its connection lost."""
    return type(error).__name__ in ("ExecuteBatchError", "UsageError")


def token_of(metadata: Iterable[tuple[str, Any]] | None) -> str:
    """The token of `authorization: Bearer TOKEN`, the scheme in any case; empty if there is none."""
    authorization = next((str(value) for key, value in metadata or () if key == "authorization"), "")
    scheme, _, token = authorization.strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def refusing(error: DarkroomError) -> grpc.RpcMethodHandler:
    """A handler for any method that refuses without reading: the handler of a unary request would be called after all
    of it has been received."""

    async def refuse(requests: Any, context: Any) -> None:
        raise error

    return grpc.stream_stream_rpc_method_handler(answering_errors(refuse, "refusal"))
