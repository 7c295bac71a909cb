"""Composition root: builds, starts and stops a server."""

from __future__ import annotations

import asyncio
import gc
import logging
from functools import partial
from typing import TYPE_CHECKING

import torch

from darkroom_plugins.errors import DarkroomError
from darkroom_plugins.manager import Plugins, load_plugins
from darkroom_server.api.catalog_service import CatalogService
from darkroom_server.api.door import AnyDoor, Door
from darkroom_server.api.encoding import Encoder
from darkroom_server.api.image_service import ImageService
from darkroom_server.api.job_list import JobList
from darkroom_server.api.keeper import Keeper
from darkroom_server.api.listening import to_listen
from darkroom_server.api.load import ServerLoad
from darkroom_server.api.preset_check import check_presets
from darkroom_server.api.submission import Submission
from darkroom_server.api.traced import open_tracing
from darkroom_server.api.warmup import wants_warm_up, warm_up
from darkroom_server.config.demo import with_demo
from darkroom_server.config.settings import Settings
from darkroom_server.device.cuda import is_cpu, set_tf32
from darkroom_server.device.resources import available_processors
from darkroom_server.device.thread_tuner import ThreadTuner
from darkroom_server.device.threads import ENGINE_NICENESS, background, lower_thread_priority
from darkroom_server.engine.engine import Engine
from darkroom_server.engine.previews import PreviewDecoders
from darkroom_server.errors import DeviceLost
from darkroom_server.job_manager import JobManager
from darkroom_server.jobs.planner import Planner
from darkroom_server.models.asset_folders import AssetFolders
from darkroom_server.models.catalog import Catalog
from darkroom_server.models.holdings import holdings
from darkroom_server.models.model import Model, ModelError
from darkroom_server.models.residency import ResidencyManager
from darkroom_server.observe.metrics import Metrics, of_engine
from darkroom_server.observe.shutdown import Shutdown, until
from darkroom_server.observe.watchdog import Watchdog
from darkroom_server.web.opening import http_door

if TYPE_CHECKING:
    from darkroom_server.web.door import HttpDoor

log = logging.getLogger(__name__)

# Collections of younger objects to a full one, in place of 10: of what 1,000 waiting jobs hold, one stops all threads
# for a tenth of a second.
FULL_COLLECTIONS = 100


class App:
    """A server. `address` is its listen address, `url` that of HTTP, if it has one; `failed` is set when the device is
    lost."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        catalog: Catalog,
        decoders: PreviewDecoders,
        door: AnyDoor,
        http: HttpDoor | None,
    ) -> None:
        """Called by `open`, which first opens the doors, starts the engine and opens the models."""
        self.settings, self.engine, self.catalog = settings, engine, catalog
        self.address, self.url = door.address, http.url if http else None
        self.failed = asyncio.Event()
        self._hurry = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.previews = decoders
        self._planner = Planner(
            catalog,
            settings.reader_threads,
            settings.max_decode_bytes,
            settings.deterministic_rows,
            settings.row_buckets,
        )
        self.residency = ResidencyManager(
            holdings(catalog.models, catalog.assets, self._prepare),
            settings.memory_budget,
            settings.park_budget,
            settings.idle_seconds,
            engine.memory_freed,
        )
        self.folders = AssetFolders(catalog, self.residency, engine.forget_prompts)
        self.jobs = JobManager(engine, self._planner, self.residency, settings)
        self._encoder = Encoder(settings.encoder_threads, settings.limits.chunk_bytes, engine.lose)
        self._submission = Submission(catalog, self.jobs, self._encoder)
        self._tracing = open_tracing(settings.traces)
        self._backend = self._tracing.of(self._submission) if self._tracing is not None else self._submission
        self.keeper = Keeper(self._backend, settings, door.numbers)
        self._door, self._http = door, http
        engine.attach(self._on_device_lost, self._relieve)
        self.metrics = Metrics(
            self.jobs, lambda: self.keeper.jobs, door.numbers, lambda: of_engine(engine, self.residency)
        )
        self._watchdog = Watchdog(engine, settings, door.report_stall, self._on_hang)

    @classmethod
    async def open(
        cls, settings: Settings, plugins: Plugins, door: AnyDoor | None = None, owns_process: bool = False
    ) -> App:
        """A server that listens, with its models opened, weights not loaded yet. `door`: in place of gRPC's.
        `owns_process`: what the process has imported is never looked through for garbage again.

        :raises CannotListen: with the system's reason
        :raises ModelError: a model or asset cannot be served as configured
        """
        settings = settings if settings.models else with_demo(settings)
        set_tf32(settings.allow_tf32)
        decoders = PreviewDecoders(plugins)
        most = settings.threads or min(torch.get_num_threads(), available_processors())
        threads = ThreadTuner(most, torch.set_num_threads, adaptive=settings.threads is None)
        engine = Engine(settings.limits.max_batch_rows, plugins, decoders, threads)
        engine.endings.logs_prompts = settings.log_prompts
        door = door or Door(settings)
        http = http_door(settings, door.calls)
        await door.open()
        engine.start()
        try:
            if all(map(is_cpu, settings.devices)):
                await engine.call(partial(lower_thread_priority, ENGINE_NICENESS))
            if http is not None:
                await http.open()
            torch.set_num_threads(1)
            background()
            catalog = await engine.call(partial(open_catalog, settings, plugins))
            app = cls(settings, engine, catalog, decoders, door, http)
            await engine.call(partial(torch.set_num_threads, most))  # see device/threads.py
            if owns_process:
                gc.freeze()  # else each unloading of a model stops all threads for a third of a second
                gc.set_threshold(*gc.get_threshold()[:2], FULL_COLLECTIONS)
        except BaseException:
            if http is not None:
                await http.close()
            await door.close(0)
            await engine.stop()
            raise
        return app

    async def start(self) -> None:
        """Preload the models, take up kept jobs that had not ended, and serve.

        :raises CannotListen: the metrics' port, with the system's reason
        :raises ModelError: a model does not load
        :raises StateDirInUse: another server has the log of kept jobs
        """
        if self.settings.metrics is not None:
            with to_listen(self.settings.metrics):
                self.metrics.start(self.settings.metrics)
        await self._preload()
        await self.keeper.open()
        jobs = JobList(self.jobs, self.keeper, self._encoder, self.settings.tokens)
        images = ImageService(self._backend, self.keeper, jobs, self.settings.slow_reader_seconds, self._tracing)
        catalog = CatalogService(
            self.catalog,
            self.residency,
            self.settings.keep_results_seconds,
            self.engine.threads,
            self.settings.deterministic_rows,
            ServerLoad(self.engine, self.jobs, self.residency, self._door.numbers),
            self.folders,
        )
        self.folders.start()
        if self._http is not None:
            self._http.serve(self.jobs.read, self.catalog.uploads)
        await self._door.serve(images, catalog)
        self._watchdog.start()

    async def stop(self) -> None:
        """Drain: refuse new jobs, give running ones `drain_seconds` to end, or until `hurry`; then stop."""
        await self._door.stop_serving()
        if self.failed.is_set():
            self.hurry()
        await self.jobs.drain(self.settings.drain_seconds, self._hurry)
        await asyncio.gather(self._door.close(1), *([self._http.close()] if self._http is not None else []))
        await self.keeper.close()
        self.folders.close()
        self._watchdog.stop()
        self.metrics.stop()
        if self._tracing is not None:
            await self._tracing.close()
        await self.engine.stop()
        self.residency.close()
        self.jobs.close()
        self.catalog.uploads.close()
        self._encoder.close()

    def hurry(self) -> None:
        """End the drain."""
        self._hurry.set()

    async def _prepare(self, model: Model) -> None:
        """Prepare a loaded model: preview decoders, on the engine's thread as they use torch; warm-up."""
        await self.engine.call(lambda: self.previews.prepare(model))
        if wants_warm_up(model):
            compiling = model.settings.compile == "load"
            await warm_up(model.name, self.catalog, self._planner, self.engine, compiling)

    async def _preload(self) -> None:
        """Load the models with `preload`, in order, if they fit the memory budget.

        :raises ModelError: a model does not load
        """
        budget = self.settings.memory_budget
        for model in self.catalog.models.values():
            room = budget is None or self.residency.device_bytes + model.device_bytes <= budget
            if not model.settings.preload or not room:
                continue
            key = ("model", model.name)
            try:
                await self.residency.acquire([key])
            except DarkroomError as error:
                raise ModelError(f"model {model.name!r} does not load: {error.__cause__ or error}") from error
            self.residency.release([key])

    def _relieve(self) -> bool:
        """Called on the engine's thread: evict idle models and assets from the device; whether there were any."""
        return asyncio.run_coroutine_threadsafe(self.residency.relieve(), self._loop).result() > 0

    def _on_device_lost(self) -> None:
        """Called on the engine's thread: the process has to end."""
        self._loop.call_soon_threadsafe(self._give_up)

    def _on_hang(self) -> None:
        self._give_up("the server's work hangs")

    def _give_up(self, why: str = "the device is lost") -> None:
        log.error(why)
        self.jobs.lose(DeviceLost(f"{why}; the server will be restarted"))
        self._farewell = self._loop.create_task(self._door.stop_serving())
        self.failed.set()


def open_catalog(settings: Settings, plugins: Plugins) -> Catalog:
    """The catalog of models and assets, without weights.

    :raises ModelError: a model or asset cannot be served as configured
    """
    catalog = Catalog.open(settings, plugins)
    check_presets(catalog)
    return catalog


async def run(settings: Settings, plugins: Plugins | None = None, owns_process: bool = False) -> int:
    """Serve until a signal. Returns the exit code: 1 after a lost device or a hanging engine. Whoever `owns_process`
    exits with it: if a thread keeps the process from that, it is ended."""
    with Shutdown(settings.drain_seconds, owns_process) as shutdown:
        plugins = plugins or load_plugins(settings.blocked_plugins)
        app = await until(shutdown.asked, App.open(settings, plugins, owns_process=owns_process))
        if app is None:
            return 0
        hurrying = asyncio.ensure_future(shutdown.hurried.wait())
        hurrying.add_done_callback(lambda _: app.hurry())
        try:
            await until(shutdown.asked, app.start())
            if not shutdown.asked.is_set():
                shutdown.serving = True
                await _serve(app, shutdown.asked)
        finally:
            if app.failed.is_set():
                shutdown.bound(0)
            await app.stop()
            hurrying.cancel()
        return 1 if app.failed.is_set() else 0


async def _serve(app: App, stop: asyncio.Event) -> None:
    """Print the readiness line, and wait for `stop` or a lost device."""
    where = f"{app.address} and {app.url}" if app.url else app.address
    print(f"Darkroom is ready on {where}: {', '.join(app.catalog.models)}", flush=True)  # noqa: T201
    unchecked = [model.name for model in app.settings.models if model.safety == "off"]
    if unchecked:
        print(f"No safety checker looks at the pictures of: {', '.join(unchecked)}", flush=True)  # noqa: T201
    app.catalog.uploads.start()
    waits = [asyncio.ensure_future(event.wait()) for event in (stop, app.failed)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    log.info("stopping")
