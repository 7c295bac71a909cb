"""The door of a replica: without a port. Calls come in process, from an edge that has made sure of who calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from darkroom_server.api.door import LateServices
from darkroom_server.api.in_process import InProcessCalls
from darkroom_server.jobs.numbers import CallNumbers

if TYPE_CHECKING:
    from darkroom.v1.catalog_service_pb2_grpc import CatalogServiceServicer
    from darkroom_server.api.image_service import ImageService


class InnerDoor:
    """See AnyDoor."""

    address = "its cluster"

    def __init__(self) -> None:
        self._services = LateServices()
        self.numbers = CallNumbers()
        self.calls = InProcessCalls(self._services, [])
        self.stalled = False

    async def open(self) -> None:
        pass

    async def serve(self, images: ImageService, catalog: CatalogServiceServicer) -> None:
        self._services.offer(images, catalog)

    def report_stall(self, stalled: bool) -> None:
        self.stalled = stalled

    async def stop_serving(self) -> None:
        pass

    async def close(self, grace: float) -> None:
        pass
