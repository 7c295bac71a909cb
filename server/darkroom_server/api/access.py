"""Who may call what, and how much of it is received. Deny by default: a method without a rule is refused to everyone.

A call passes three gates: its token and the rule of its method, before anything of the request is read; a lane, in
which its message arrives; and, for jobs, the limits of its token (`quotas`).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextvars import ContextVar
from enum import IntEnum
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote
from weakref import WeakValueDictionary

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from darkroom_plugins.errors import DarkroomError, InvalidRequest
from darkroom_server.api.interceptors import answering_errors, client_is_gone, refusing, token_of
from darkroom_server.api.status import outcome_of
from darkroom_server.errors import NotImplementedYet, OperatorRequired, QueueFull, RequestTooLarge, Unauthenticated
from darkroom_server.jobs.job import who_left
from darkroom_server.jobs.numbers import CallNumbers, Usage

if TYPE_CHECKING:
    from darkroom_server.config.settings import TokenSettings


class Role(IntEnum):
    """The least that a caller must be."""

    ANYONE = 0
    USER = 1
    OPERATOR = 2
    NOBODY = 3


HEALTH, REFLECTION = "grpc.health.v1.Health", "grpc.reflection.{}.ServerReflection"
IMAGES, CATALOG = "darkroom.v1.ImageService", "darkroom.v1.CatalogService"
LISTS = ("ListModels", "ListTasks", "ListSchedulers", "ListLoras", "ListControlNets", "ListPreprocessors")


def _rule(role: Role, service: str, *methods: str) -> dict[str, Role]:
    return {f"/{service}/{method}": role for method in methods}


RULES = {
    **_rule(Role.ANYONE, HEALTH, "Check", "Watch"),  # probes have no token; the services' names are all they tell
    **_rule(Role.NOBODY, HEALTH, "List"),
    # It describes the API's messages, and nothing of what is served; but strangers need not know either.
    **_rule(Role.USER, REFLECTION.format("v1"), "ServerReflectionInfo"),
    **_rule(Role.USER, REFLECTION.format("v1alpha"), "ServerReflectionInfo"),
    **_rule(Role.USER, IMAGES, "Generate", "Edit", "Watch", "Cancel", "ListJobs", "GetJob", "Preprocess"),
    **_rule(Role.USER, CATALOG, "GetServerInfo", *LISTS),
    **_rule(Role.OPERATOR, CATALOG, "LoadModel", "UnloadModel", "RescanAssets", "GetServerLoad"),
}
PICTURES = frozenset(_rule(Role.USER, IMAGES, "Generate", "Edit", "Preprocess"))  # their requests are large
SMALL_BYTES = 64 * 1024  # of any other request
# Messages of one token, and of one host without tokens, that arrive at the same time. Others wait, and what they send
# stays with gRPC's flow control, some 64 KiB a call: gRPC itself would receive all at once, whatever the handler wants.
TOKEN_LANES, HOST_LANES = 16, 2
HOST_SECONDS = 1.0  # for a health check to arrive in: it fits into one packet
HOST_CALLS = 100  # of health, at once


class Caller(NamedTuple):
    """Whose token a call has."""

    token: TokenSettings | None  # None where no tokens are configured
    usage: Usage
    owner: str  # of its jobs: the fingerprint of the token that came with the call, empty without one


_caller: ContextVar[Caller] = ContextVar("caller")


def caller() -> Caller | None:
    """Who makes the present call; None beside calls. For handlers."""
    return _caller.get(None)


def owner() -> str:
    """Whose jobs the present call is about."""
    present = caller()
    return present.owner if present else ""


def call_as(known: Caller) -> None:
    """Say who makes the present call. For what has made sure of it."""
    _caller.set(known)


def caller_of(owner: str, tokens: Sequence[TokenSettings], numbers: CallNumbers) -> Caller:
    """Who once made a call, as jobs remember it.

    :raises Unauthenticated: their token is no longer one of the server's
    """
    known = next((each for each in tokens if each.sha256.lower() == owner), None)
    if tokens and known is None:
        raise Unauthenticated("the token that this job came with is no longer one of this server's")
    return Caller(known, numbers.usage[known.name if known else ""], owner)


class Lanes:
    """Lets a bounded number of messages arrive at once from each sender."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._lanes: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()  # in use, by sender

    def of(self, sender: str) -> asyncio.Semaphore:
        """To be held while a message arrives."""
        return self._lanes.setdefault(sender, asyncio.Semaphore(self._count))


class Access(aio.ServerInterceptor):  # type: ignore[misc]
    """Interceptor: applies RULES, receives requests in lanes, and maps errors to statuses.

    Requests above `max_bytes`, and small ones above SMALL_BYTES, get REQUEST_TOO_LARGE, undecoded. Undecodable ones get
    INVALID_ARGUMENT: gRPC would send the exception's text to the client.
    """

    def __init__(self, tokens: Sequence[TokenSettings], max_bytes: int) -> None:
        self._tokens = {bytes.fromhex(each.sha256): each for each in tokens}
        self._max_bytes = max_bytes
        self._lanes, self._strangers_lanes = Lanes(TOKEN_LANES), Lanes(HOST_LANES)
        self._strangers: dict[str, int] = {}  # open calls, by host
        self.numbers = CallNumbers()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        handler, method = await continuation(details), details.method
        role, token = RULES.get(method, Role.NOBODY), token_of(details.invocation_metadata)
        if role is Role.ANYONE:
            return self._for_strangers(handler, method)
        known = self._known(token)
        if self._tokens and known is None:
            self.numbers.ends[method if method in RULES else "other", "UNAUTHENTICATED"] += 1
            return refusing(Unauthenticated("this server wants a token: authorization: Bearer <token>"))
        if handler is None or role is Role.NOBODY:
            return refusing(NotImplementedYet(message="this server does not offer this call"))
        if role is Role.OPERATOR and known is not None and known.role != "operator":
            return refusing(OperatorRequired("this call wants an operator's token, and this is a user's"))
        return self._for_bearers(handler, method, known, fingerprint(token))

    def _known(self, token: str) -> TokenSettings | None:
        """The bearer; None if unknown. Constant-time comparison over all tokens."""
        digest = hashlib.sha256(token.encode()).digest()
        found = [known for each, known in self._tokens.items() if hmac.compare_digest(each, digest)]
        return found[0] if found and token else None

    def _for_bearers(self, handler: Any, method: str, known: TokenSettings | None, owner: str) -> grpc.RpcMethodHandler:
        lane = self._lanes.of(known.name if known else "")
        most = self._max_bytes if method in PICTURES else min(SMALL_BYTES, self._max_bytes)

        async def call(requests: Any, context: Any) -> Any:
            call_as(Caller(known, self.numbers.usage[known.name if known else ""], owner))
            await _respond(handler, _received(context, lane, None, most, handler.request_deserializer), context)

        return _streaming(handler, self._counted(call, method), method)

    def _for_strangers(self, handler: Any, method: str) -> grpc.RpcMethodHandler:
        async def call(requests: Any, context: Any) -> Any:
            host = host_of(context.peer())
            if self._strangers.get(host, 0) >= HOST_CALLS:
                raise QueueFull(f"{HOST_CALLS} health calls of {host} are open already")
            self._strangers[host] = self._strangers.get(host, 0) + 1
            try:
                lane = self._strangers_lanes.of(host)
                messages = _received(context, lane, HOST_SECONDS, SMALL_BYTES, handler.request_deserializer)
                await _respond(handler, messages, context)
            finally:
                self._strangers[host] -= 1
                if not self._strangers[host]:
                    del self._strangers[host]

        return _streaming(handler, self._counted(call, method), method)

    def _counted(self, call: Any, method: str) -> Any:
        async def counted(requests: Any, context: Any) -> None:
            self.numbers.open[method] += 1
            reason = "OK"
            try:
                await call(requests, context)
            except DarkroomError as error:
                reason = outcome_of(error)
                raise
            except asyncio.CancelledError:
                reason = who_left(context.time_remaining()).reason
                raise
            except Exception as error:
                reason = "CLIENT" if client_is_gone(error) else "INTERNAL"
                raise
            finally:
                self.numbers.open[method] -= 1
                self.numbers.ends[method, reason] += 1

        return counted


def fingerprint(token: str) -> str:
    """Of a token; empty for none."""
    return hashlib.sha256(token.encode()).hexdigest() if token else ""


def host_of(peer: str) -> str:
    """The host of gRPC's text of a peer, as ``ipv4:10.0.0.1:5000``; of IPv6 the network, as a host has many addresses
    there."""
    scheme, _, rest = peer.partition(":")
    host = unquote(rest.rpartition(":")[0]).strip("[]").partition("%")[0]
    if scheme != "ipv6":
        return host or scheme
    address = ip_address(host)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped) if mapped else f"{int(address) >> 64:x}"


def _streaming(handler: Any, call: Any, method: str) -> grpc.RpcMethodHandler:
    """A handler of any kind as one that reads its requests itself: gRPC receives a single request before it calls the
    handler. On the wire they are the same."""
    behaviour = answering_errors(call, method)
    return grpc.stream_stream_rpc_method_handler(behaviour, None, handler.response_serializer)


async def _respond(handler: Any, messages: AsyncIterator[Any], context: Any) -> None:
    """Call a handler of any kind with what it takes, and write what it returns."""
    if handler.request_streaming:
        behaviour, request = handler.stream_stream, messages
    else:
        behaviour = handler.unary_stream if handler.response_streaming else handler.unary_unary
        try:
            request = await anext(messages)
        except StopAsyncIteration:
            raise InvalidRequest(message="the request is missing, or far too large") from None
    if handler.response_streaming:
        made = behaviour(request, context)
        if hasattr(made, "__aiter__"):
            async for response in made:
                await context.write(response)
        else:
            await made
    else:
        await context.write(await behaviour(request, context))


async def _received(
    context: Any, lane: asyncio.Semaphore, seconds: float | None, most: int, decode: Callable[[bytes], Any] | None
) -> AsyncIterator[Any]:
    """The messages of a call, each received in a lane, within these seconds, and decoded.

    :raises RequestTooLarge, InvalidRequest: one is not as it should be
    """
    while True:
        async with lane:
            try:
                async with asyncio.timeout(seconds):
                    data = await context.read()  # the iterator of requests would hold the message after its end
            except TimeoutError:
                raise InvalidRequest(message=f"the request did not arrive within {seconds:g} s") from None
        if data is aio.EOF:
            return
        if len(data) > most:
            raise RequestTooLarge(f"the request has {len(data):,} bytes, and this server takes up to {most:,}")
        try:
            message = decode(data) if decode else data
        except DecodeError:
            raise InvalidRequest(message="the request is not a message of this API") from None
        del data  # a stream may be open for long
        yield message
