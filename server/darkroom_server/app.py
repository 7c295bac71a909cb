"""Puts a server together, and runs it."""

from __future__ import annotations

import asyncio
import logging
import signal
from functools import partial

import torch
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from darkroom.v1 import catalog_service_pb2, catalog_service_pb2_grpc, image_service_pb2, image_service_pb2_grpc
from darkroom_plugins.errors import DarkroomError
from darkroom_plugins.manager import Plugins, load_plugins
from darkroom_server.api.catalog_service import CatalogService
from darkroom_server.api.image_service import ImageService
from darkroom_server.api.interceptors import DecodeCheck, TokenCheck
from darkroom_server.api.warmup import rehearse
from darkroom_server.config.settings import Settings, with_demo
from darkroom_server.device.threads import background
from darkroom_server.engine.engine import Engine
from darkroom_server.engine.previews import PreviewDecoders
from darkroom_server.errors import DeviceLost
from darkroom_server.models.assets import AssetFiles
from darkroom_server.models.catalog import Catalog
from darkroom_server.models.holdings import holdings
from darkroom_server.models.model import Model, ModelError
from darkroom_server.models.opening import check_budget, open_models
from darkroom_server.models.residency import Store

log = logging.getLogger(__name__)

SERVICES = tuple(
    service.full_name
    for module in (image_service_pb2, catalog_service_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
)


class AddressInUse(Exception):
    """The server cannot listen where it should."""


class App:
    """A server that runs. `address` is where; `failed` is set when the device is lost."""

    def __init__(self, settings: Settings, plugins: Plugins) -> None:
        if not settings.models:
            settings = with_demo(settings)
        self.settings = settings
        self.address = ""
        self.failed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._plugins = plugins
        decoders = PreviewDecoders(plugins)
        self._decoders = decoders
        self.engine = Engine(settings.limits.max_batch_rows, plugins, decoders, self._on_device_lost, self._relieve)
        self._health = health.aio.HealthServicer()
        self._server: aio.Server | None = None
        self.images: ImageService | None = None
        self.store: Store | None = None

    async def start(self) -> None:
        """Load the models, and serve.

        :raises ModelError: a model does not load
        :raises AddressInUse: nothing can listen at the address
        """
        self.engine.start()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        background()
        catalog = await self.engine.call(self._open_catalog)
        self.images = ImageService(catalog, self.engine, self.settings)
        await self.engine.call(partial(torch.set_num_threads, threads))  # see threads.py
        self.store = catalog.store
        await self._preload(catalog)
        self._server = self._build(catalog, self.images)
        try:
            port = self._server.add_insecure_port(self.settings.listen)
        except RuntimeError as error:
            raise AddressInUse(f"cannot listen on {self.settings.listen}; is another server running there?") from error
        host = self.settings.listen.rpartition(":")[0]
        self.address = self.settings.listen if host.startswith("unix") else f"{host}:{port}"
        await self._server.start()
        for service in ("", *SERVICES):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """Refuse new jobs, let those that run end within `drain_seconds`, and stop."""
        await self._health.enter_graceful_shutdown()
        if self.images is not None:
            await self.images.drain(0 if self.failed.is_set() else self.settings.drain_seconds)
        if self._server is not None:
            await self._server.stop(1)
        await self.engine.stop()
        if self.store is not None:
            self.store.close()
        if self.images is not None:
            self.images.close()

    def _open_catalog(self) -> Catalog:
        settings = self.settings
        models = open_models(settings, self._plugins)
        assets = AssetFiles(settings, self._plugins, models)
        held = holdings(models, assets, self._prepare)
        check_budget(models, settings.memory_budget)
        budgets = (settings.memory_budget, settings.park_budget)
        store = Store(held, *budgets, settings.idle_seconds, self.engine.forget_limits)
        default = settings.default_model or settings.models[0].name
        return Catalog(self._plugins, models, assets, store, default, settings.limits)

    async def _prepare(self, model: Model) -> None:
        """What a model needs once its weights are there. On the engine's thread, as it uses torch."""
        await self.engine.call(lambda: self._decoders.prepare(model))
        if model.settings.compile == "load" and self.images is not None:
            await rehearse(model.name, self.settings.limits, self.images.make_plan, self.engine)

    async def _preload(self, catalog: Catalog) -> None:
        """Load the models that are to be there from the beginning, as far as there is room.

        :raises ModelError: one does not load
        """
        budget = self.settings.memory_budget
        for model in catalog.models.values():
            room = budget is None or catalog.store.device_bytes + model.device_bytes <= budget
            if not model.settings.preload or not room:
                continue
            key = ("model", model.name)
            try:
                await catalog.store.acquire([key])
            except DarkroomError as error:
                raise ModelError(f"model {model.name!r} does not load: {error.__cause__ or error}") from error
            catalog.store.release([key])

    def _build(self, catalog: Catalog, images: ImageService) -> aio.Server:
        options = [
            ("grpc.so_reuseport", 0),  # else a second server takes the same port in silence
            ("grpc.max_receive_message_length", self.settings.limits.max_request_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.keepalive_time_ms", 20_000),  # to notice clients that vanished without a word
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ]
        checks = [*([TokenCheck(self.settings.tokens)] if self.settings.tokens else []), DecodeCheck()]
        server = aio.server(interceptors=checks, options=options)
        image_service_pb2_grpc.add_ImageServiceServicer_to_server(images, server)
        catalog_service_pb2_grpc.add_CatalogServiceServicer_to_server(CatalogService(catalog), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        return server

    def _relieve(self) -> bool:
        """Called on the engine's thread: take what nobody uses off the device; whether there was anything."""
        if self.store is None:
            return False
        return asyncio.run_coroutine_threadsafe(self.store.relieve(), self._loop).result() > 0

    def _on_device_lost(self) -> None:
        """Called on the engine's thread: nothing can be made any more, so the process is to end."""
        self._loop.call_soon_threadsafe(self._give_up)

    def _give_up(self) -> None:
        log.error("the device is lost")
        if self.images is not None:
            self.images.lose(DeviceLost("the device is lost; the server will be restarted"))
        self._farewell = self._loop.create_task(self._health.enter_graceful_shutdown())
        self.failed.set()


async def _started(app: App, stop: asyncio.Event) -> bool:
    """Start it, which loads models; false when it is to stop before that is done."""
    starting, stopping = asyncio.ensure_future(app.start()), asyncio.ensure_future(stop.wait())
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return False
    await starting
    return True


async def run(settings: Settings, plugins: Plugins | None = None) -> int:
    """Serve until SIGINT or SIGTERM; the exit code, 1 when the device was lost."""
    app = App(settings, plugins or load_plugins(settings.blocked_plugins))
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    if not await _started(app, stop):
        await app.stop()
        return 0
    print(f"Darkroom is ready on {app.address}: {', '.join(model.name for model in app.settings.models)}", flush=True)  # noqa: T201
    unchecked = [model.name for model in app.settings.models if model.safety == "off"]
    if unchecked:
        print(f"No safety checker looks at the pictures of: {', '.join(unchecked)}", flush=True)  # noqa: T201
    waits = [asyncio.ensure_future(event.wait()) for event in (stop, app.failed)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    log.info("stopping")
    await app.stop()
    for wait in waits:
        wait.cancel()
    return 1 if app.failed.is_set() else 0
