"""The edge: the gRPC server in front of replicas. Imports no torch."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from darkroom_server.api.door import Door
from darkroom_server.api.image_service import ImageService
from darkroom_server.api.job_list import JobList
from darkroom_server.api.keeper import Keeper
from darkroom_server.api.traced import open_tracing
from darkroom_server.cluster.backend import ClusterBackend
from darkroom_server.cluster.catalog import ClusterCatalog
from darkroom_server.observe.shutdown import Shutdown, until
from darkroom_server.pictures.encode import encode_thumbnail

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from darkroom_server.cluster.wire import Replicas
    from darkroom_server.config.settings import Settings

log = logging.getLogger(__name__)


class EdgeThumbnails:
    """See Thumbnails."""

    async def thumbnail(self, data: bytes, edge: int) -> bytes:
        return await asyncio.to_thread(encode_thumbnail, data, edge)


class Edge:
    """A server without an engine. `address` is its listen address."""

    def __init__(self, settings: Settings, door: Door, replicas: Replicas) -> None:
        """Called by `open`."""
        self.settings, self.replicas = settings, replicas
        self.address = door.address
        self._door = door
        self._hurry = asyncio.Event()
        self.backend = ClusterBackend(replicas, settings)
        self._tracing = open_tracing(settings.traces)
        self._traced = self._tracing.of(self.backend) if self._tracing is not None else self.backend
        self.keeper = Keeper(self._traced, settings, door.numbers)

    @classmethod
    async def open(cls, settings: Settings, replicas: Callable[[Settings], Awaitable[Replicas]] | None = None) -> Edge:
        """An edge that listens, with replicas that are ready: those of Ray Serve, or what `replicas` opens.

        :raises CannotListen: with the system's reason
        :raises ClusterError: with the reason
        """
        door = Door(settings)
        await door.open()
        try:
            return cls(settings, door, await (replicas or ray_replicas)(settings))
        except BaseException:
            await door.close(0)
            raise

    async def start(self) -> None:
        """Take up kept jobs that had not ended, and serve.

        :raises StateDirInUse: another server has the log of kept jobs
        """
        await self.keeper.open()
        jobs = JobList(self.backend.jobs, self.keeper, EdgeThumbnails(), self.settings.tokens)
        images = ImageService(self._traced, self.keeper, jobs, self.settings.slow_reader_seconds, self._tracing)
        await self._door.serve(images, ClusterCatalog(self.backend, self._door.numbers))

    async def stop(self) -> None:
        """Drain: refuse new jobs, give running ones `drain_seconds` to end, or until `hurry`; then stop."""
        await self._door.stop_serving()
        await self.backend.jobs.drain(self.settings.drain_seconds, self._hurry)
        await self._door.close(1)
        await self.keeper.close()
        await self.backend.close()
        await self.replicas.close()
        if self._tracing is not None:
            await self._tracing.close()

    def hurry(self) -> None:
        """End the drain."""
        self._hurry.set()


async def ray_replicas(settings: Settings) -> Replicas:
    """Those of Ray Serve. :raises ClusterError: with the reason"""
    from darkroom_server.cluster.ray_replicas import RayReplicas

    return await RayReplicas.open(settings)


async def run(settings: Settings, owns_process: bool = False) -> int:
    """Serve until a signal. Returns the exit code."""
    with Shutdown(settings.drain_seconds, owns_process) as shutdown:
        edge = await until(shutdown.asked, Edge.open(settings))
        if edge is None:
            return 0
        hurrying = asyncio.ensure_future(shutdown.hurried.wait())
        hurrying.add_done_callback(lambda _: edge.hurry())
        try:
            await until(shutdown.asked, edge.start())
            if not shutdown.asked.is_set():
                shutdown.serving = True
                print(f"Darkroom is ready on {edge.address}: replicas on Ray Serve", flush=True)  # noqa: T201
                await shutdown.asked.wait()
                log.info("stopping")
        finally:
            await edge.stop()
            hurrying.cancel()
        return 0
