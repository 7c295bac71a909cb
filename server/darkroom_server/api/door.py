"""The gRPC server: it answers health and reflection from the start, and the API's services once they are there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import grpc
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from darkroom.v1 import catalog_service_pb2, catalog_service_pb2_grpc, image_service_pb2, image_service_pb2_grpc
from darkroom_server.api.access import Access
from darkroom_server.api.credentials import Certificates
from darkroom_server.api.in_process import InProcessCalls
from darkroom_server.api.interceptors import refusing
from darkroom_server.api.listening import Listener
from darkroom_server.api.reflection import enable_reflection
from darkroom_server.errors import Starting

if TYPE_CHECKING:
    from darkroom.v1.catalog_service_pb2_grpc import CatalogServiceServicer
    from darkroom_server.api.image_service import ImageService
    from darkroom_server.config.settings import Limits, Settings
    from darkroom_server.jobs.numbers import CallNumbers

SERVICES = tuple(
    service.full_name
    for module in (image_service_pb2, catalog_service_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
)
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class LateServices(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The handlers of all services. Those of the API are added after the server was started, which gRPC's own may not
    be; until then its calls are refused with STARTING."""

    def __init__(self) -> None:
        self._handlers: list[grpc.GenericRpcHandler] = []
        self.there = False  # those of the API

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Called by the stubs' add_…_to_server."""
        self._handlers += handlers

    def offer(self, images: ImageService, catalog: CatalogServiceServicer) -> None:
        """Let calls of the API in."""
        image_service_pb2_grpc.add_ImageServiceServicer_to_server(images, self)
        catalog_service_pb2_grpc.add_CatalogServiceServicer_to_server(catalog, self)
        self.there = True

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """Called by the stubs' add_…_to_server, with the same handlers once more."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        found = (each.service(details) for each in self._handlers)
        if self.there or not details.method.startswith("/darkroom."):
            return next((handler for handler in found if handler is not None), None)
        return refusing(Starting("the server is starting: its models are being opened and loaded"))


class AnyDoor(Protocol):
    """What calls come in by."""

    numbers: CallNumbers
    calls: InProcessCalls

    @property
    def address(self) -> str:
        """Where it is, for people."""

    async def open(self) -> None:
        """Answer. :raises CannotListen: with the system's reason"""

    async def serve(self, images: ImageService, catalog: CatalogServiceServicer) -> None:
        """Let calls of the API in."""

    def report_stall(self, stalled: bool) -> None:
        """Tell probes that the engine has stalled, or goes on."""

    async def stop_serving(self) -> None:
        """Tell probes that the server is going."""

    async def close(self, grace: float) -> None:
        """Take no more calls, and give running ones `grace` seconds to end."""


class Door:
    """Opened before there is anything to serve, so that a probe can tell starting from dead."""

    def __init__(self, settings: Settings) -> None:
        self._alive = SERVING if settings.health_while_starting == "serving" else NOT_SERVING
        self._listener = Listener(settings.listen, Certificates(settings.tls) if settings.tls else None)
        self._health = health.aio.HealthServicer()
        self._services = LateServices()
        access = Access(settings.tokens, settings.limits.max_request_bytes)
        self.numbers = access.numbers
        self._server = aio.server(interceptors=[access], options=_options(settings))
        self._server.add_generic_rpc_handlers((self._services,))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._services)
        enable_reflection((*SERVICES, health.SERVICE_NAME), self._services)
        self.calls = InProcessCalls(self._services, [access])

    @property
    def address(self) -> str:
        """Where it listens, with the port that was found for port 0."""
        return self._listener.address

    async def open(self) -> None:
        """Bind to the address, and answer.

        :raises CannotListen: with the system's reason
        """
        await self._listener.bind(self._server)
        await self._health.set("", self._alive)
        for service in SERVICES:
            await self._health.set(service, NOT_SERVING)
        await self._server.start()

    async def serve(self, images: ImageService, catalog: CatalogServiceServicer) -> None:
        """Let calls of the API in."""
        self._services.offer(images, catalog)
        for service in ("", *SERVICES):
            await self._health.set(service, SERVING)

    def report_stall(self, stalled: bool) -> None:
        """Tell health probes that the engine has stalled, or goes on; nothing while the server starts."""
        if not self._services.there:
            return
        self._reporting = asyncio.ensure_future(self._report(NOT_SERVING if stalled else SERVING))

    async def _report(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in SERVICES:
            await self._health.set(service, status)

    async def stop_serving(self) -> None:
        """Tell health probes that the server is going. Calls still come in, and running ones go on."""
        await self._health.enter_graceful_shutdown()

    async def close(self, grace: float) -> None:
        """Take no more calls, give running ones `grace` seconds to end, and let go of the address."""
        await self._server.stop(grace)
        self._listener.close()


def receive_bytes(limits: Limits) -> int:
    """How large requests are received: above the limit, as the transport's own refusal has no reason. What is a little
    too large is received, and refused by Access."""
    return min(limits.max_request_bytes + limits.max_request_bytes // 4, 2**31 - 1)


def _options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # else a second server silently shares the port
        ("grpc.max_receive_message_length", receive_bytes(settings.limits)),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", 20_000),  # detects clients that vanished
        ("grpc.http2.ping_timeout_ms", 20_000),  # gRPC does not enforce keepalive_timeout_ms (grpc/grpc#39239)
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]
