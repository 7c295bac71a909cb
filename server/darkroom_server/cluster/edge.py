"""The edge: the gRPC server in front of replicas. Imports no torch."""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import TYPE_CHECKING

from darkroom_server.api.door import Door
from darkroom_server.api.image_service import ImageService
from darkroom_server.api.job_list import JobList
from darkroom_server.api.keeper import Keeper
from darkroom_server.api.listening import to_listen
from darkroom_server.api.traced import open_tracing
from darkroom_server.cluster.backend import ClusterBackend
from darkroom_server.cluster.catalog import ClusterCatalog
from darkroom_server.observe.metrics import Metrics, labelled
from darkroom_server.observe.shutdown import Shutdown, until
from darkroom_server.pictures.encode import encode_thumbnail
from darkroom_server.pictures.uploads import Uploads
from darkroom_server.web.opening import http_door

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from prometheus_client.core import Metric

    from darkroom_server.cluster.wire import Replicas
    from darkroom_server.config.settings import Settings
    from darkroom_server.web.door import HttpDoor

log = logging.getLogger(__name__)

METRICS_SECONDS = 5.0  # that replicas have to tell their metrics


class EdgeThumbnails:
    """See Thumbnails."""

    async def thumbnail(self, data: bytes, edge: int) -> bytes:
        return await asyncio.to_thread(encode_thumbnail, data, edge)


class Edge:
    """A server without an engine. `address` is its listen address, `url` that of HTTP, if it has one."""

    def __init__(self, settings: Settings, door: Door, http: HttpDoor | None, replicas: Replicas) -> None:
        """Called by `open`."""
        self.settings, self.replicas = settings, replicas
        self.address, self.url = door.address, http.url if http else None
        self._door, self._http = door, http
        self._uploads = Uploads(
            settings.limits, settings.reader_threads, settings.upload_memory, settings.upload_seconds
        )
        self._hurry = asyncio.Event()
        self._loop, self._name = asyncio.get_running_loop(), uuid.uuid4().hex
        self.backend = ClusterBackend(replicas, settings)
        self._tracing = open_tracing(settings.traces)
        self._traced = self._tracing.of(self.backend) if self._tracing is not None else self.backend
        self.keeper = Keeper(self._traced, settings, door.numbers)
        self.metrics = Metrics(self.backend.jobs, lambda: self.keeper.jobs, door.numbers, self._of_replicas)

    @classmethod
    async def open(cls, settings: Settings, replicas: Callable[[Settings], Awaitable[Replicas]] | None = None) -> Edge:
        """An edge that listens, with replicas that are ready: those of Ray Serve, or what `replicas` opens.

        :raises CannotListen: with the system's reason
        :raises ClusterError: with the reason
        """
        door = Door(settings)
        http = http_door(settings, door.calls)
        await door.open()
        try:
            if http is not None:
                await http.open()
            return cls(settings, door, http, await (replicas or ray_replicas)(settings))
        except BaseException:
            if http is not None:
                await http.close()
            await door.close(0)
            raise

    async def start(self) -> None:
        """Take up kept jobs that had not ended, and serve.

        :raises CannotListen: the metrics' port, with the system's reason
        :raises StateDirInUse: another server has the log of kept jobs
        """
        if self.settings.metrics is not None:
            with to_listen(self.settings.metrics):
                self.metrics.start(self.settings.metrics)
        await self.keeper.open()
        jobs = JobList(self.backend.jobs, self.keeper, EdgeThumbnails(), self.settings.tokens)
        images = ImageService(self._traced, self.keeper, jobs, self.settings.slow_reader_seconds, self._tracing)
        if self._http is not None:
            self._http.serve(self.backend.jobs.read, self._uploads)
        await self._door.serve(images, ClusterCatalog(self.backend, self._door.numbers))

    async def stop(self) -> None:
        """Drain: refuse new jobs, give running ones `drain_seconds` to end, or until `hurry`; then stop."""
        await self._door.stop_serving()
        await self.backend.jobs.drain(self.settings.drain_seconds, self._hurry)
        await asyncio.gather(self._door.close(1), *([self._http.close()] if self._http is not None else []))
        await self.keeper.close()
        self.metrics.stop()
        self._uploads.close()
        await self.backend.close()
        await self.replicas.close()
        if self._tracing is not None:
            await self._tracing.close()

    def _of_replicas(self) -> Iterable[Metric]:
        """Their metrics. For the thread on which metrics are read."""
        asking = asyncio.run_coroutine_threadsafe(self.replicas.metrics(self._name), self._loop)
        try:
            return labelled(asking.result(METRICS_SECONDS), "replica")
        except Exception as error:  # the edge's own are to be seen all the same
            log.warning("the replicas do not tell their metrics: %s", error)
            return ()

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
                where = f"{edge.address} and {edge.url}" if edge.url else edge.address
                print(f"Darkroom is ready on {where}: replicas on Ray Serve", flush=True)  # noqa: T201
                await shutdown.asked.wait()
                log.info("stopping")
        finally:
            await edge.stop()
            hurrying.cancel()
        return 0
