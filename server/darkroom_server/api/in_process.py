"""In-process calls: other doors' way to the handlers of the gRPC server, past its transport, through its interceptors.

So tokens, limits and errors are the same by every door, and an RPC or an interceptor that is added counts for all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.rpc import status_pb2
from grpc import aio

from darkroom_server.api.status import DETAILS_KEY

Find = Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]]


class Aborted(aio.AbortError):  # type: ignore[misc]
    """A call that ended with a status; `status` is the google.rpc.Status, serialized."""

    def __init__(self, code: grpc.StatusCode, message: str, trailers: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.code, self.message = code, message
        self.status: bytes = (
            trailers.get(DETAILS_KEY) or status_pb2.Status(code=code.value[0], message=message).SerializeToString()
        )

    @property
    def details(self) -> Sequence[any_pb2.Any]:
        """google.rpc's messages, packed: ErrorInfo, BadRequest, RetryInfo."""
        return list(status_pb2.Status.FromString(self.status).details)


class CallDetails(grpc.HandlerCallDetails):  # type: ignore[misc]
    """What interceptors see of a call."""

    def __init__(self, method: str, metadata: Sequence[tuple[str, str]]) -> None:
        self.method, self.invocation_metadata = method, metadata


@dataclass(frozen=True)
class Caller:
    """Who calls: metadata with keys in lower case, the peer as gRPC spells it, seconds until the call's deadline."""

    metadata: Sequence[tuple[str, str]]
    peer: str = ""
    seconds: float | None = None


class InProcessContext:
    """A CallContext whose messages `InProcessCall.messages` reads."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._deadline = None if caller.seconds is None else time.monotonic() + caller.seconds
        self.wanted = asyncio.Event()  # the first request
        self.sent: asyncio.Queue[Any] = asyncio.Queue()  # requests, then EOF
        self.written: asyncio.Queue[Any] = asyncio.Queue()

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        return self._caller.metadata

    def peer(self) -> str:
        return self._caller.peer

    def time_remaining(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    async def read(self) -> Any:
        self.wanted.set()
        request = await self.sent.get()
        if request is aio.EOF:
            self.sent.put_nowait(request)  # for who asks again
        return request

    async def write(self, message: Any) -> None:
        """Returns when the reader comes for the next: so a client that does not read stops the handler here."""
        self.written.put_nowait(message)
        await self.written.join()

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Sequence[tuple[str, Any]] = ()
    ) -> NoReturn:
        raise Aborted(code, details, dict(trailing_metadata))


class InProcessCalls:
    """The methods of a server, from its handlers and interceptors (outermost first)."""

    def __init__(self, handlers: grpc.GenericRpcHandler, interceptors: Sequence[aio.ServerInterceptor]) -> None:
        async def find(details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
            return handlers.service(details)

        self._find: Find = find
        for interceptor in reversed(interceptors):
            self._find = _intercepted(self._find, interceptor)

    async def begin(self, method: str, caller: Caller) -> InProcessCall:
        """A call of a method, ``/package.Service/Method``, that waits for its request. To be closed.

        :raises Aborted: it is refused, whatever its request
        """
        handler = await self._find(CallDetails(method, caller.metadata))
        if handler is None:
            raise Aborted(grpc.StatusCode.UNIMPLEMENTED, f"there is no method {method}", {})
        call = InProcessCall(handler, InProcessContext(caller))
        try:
            await call.wait_until_let_in()
        except BaseException:
            await call.close()
            raise
        return call

    async def unary(self, method: str, request: bytes, caller: Caller) -> Any:
        """The answer of a method with one. :raises Aborted: it failed"""
        call = await self.begin(method, caller)
        try:
            call.send(request)
            return await anext(call.messages())
        finally:
            await call.close()


class InProcessCall:
    """One call. Requests are serialized messages: what decodes them also refuses what is too large or no message."""

    def __init__(self, handler: grpc.RpcMethodHandler, context: InProcessContext) -> None:
        self._context = context
        self._task = asyncio.create_task(_run(handler, context))
        self._task.add_done_callback(lambda _: context.written.put_nowait(aio.EOF))

    async def wait_until_let_in(self) -> None:
        """Returns when the handler wants the request. :raises Aborted: it is refused without"""
        wanted = asyncio.ensure_future(self._context.wanted.wait())
        try:
            await asyncio.wait((wanted, self._task), return_when=asyncio.FIRST_COMPLETED)
        finally:
            wanted.cancel()
        if self._task.done():
            await self._task

    def send(self, request: bytes, *, last: bool = True) -> None:
        """Send a request, and whether others follow."""
        self._context.sent.put_nowait(request)
        if last:
            self.end()

    def end(self) -> None:
        """Say that no more requests follow."""
        self._context.sent.put_nowait(aio.EOF)

    async def messages(self) -> AsyncIterator[Any]:
        """The answers. :raises Aborted: the call failed"""
        written = self._context.written
        while (message := await written.get()) is not aio.EOF:
            yield message
            written.task_done()
        await self._task

    async def close(self) -> None:
        """Cancel the call, if it has not ended."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.exception()  # has been raised, or nobody reads on


async def _run(handler: grpc.RpcMethodHandler, context: InProcessContext) -> None:
    """Handlers of one request or one answer, too, which interceptors may have made ones of streams. Knows no call: what
    it raises has this frame, and the call has that."""
    decode = handler.request_deserializer or bytes
    request: Any
    if handler.request_streaming:
        behaviour, request = handler.stream_stream, (decode(each) async for each in _requests(context))
    else:
        behaviour = handler.unary_stream if handler.response_streaming else handler.unary_unary
        request = decode(await anext(_requests(context)))
    answered = behaviour(request, context)
    if not hasattr(answered, "__aiter__"):
        answer = await answered
        if answer is not None:  # else it has been written
            await context.write(answer)
        return
    async for message in answered:
        await context.write(message)


async def _requests(context: InProcessContext) -> AsyncIterator[bytes]:
    while (request := await context.read()) is not aio.EOF:
        yield request


def _intercepted(find: Find, interceptor: aio.ServerInterceptor) -> Find:
    async def intercepted(details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return await interceptor.intercept_service(find, details)

    return intercepted
