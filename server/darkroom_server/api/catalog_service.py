"""CatalogService: lists of models, tasks, schedulers and assets; loading and unloading of models."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeAlias

import diffusers
import torch
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from darkroom.v1 import catalog_service_pb2 as pb
from darkroom.v1 import catalog_service_pb2_grpc
from darkroom_plugins.errors import InvalidRequest, Violation, no_such
from darkroom_plugins.version import VERSION
from darkroom_server.api import messages, quotas
from darkroom_server.api.load import RESIDENCIES
from darkroom_server.api.messages import preview_mode
from darkroom_server.api.validation.presets import parameters_of
from darkroom_server.device.resources import row_bucket
from darkroom_server.errors import NotFound
from darkroom_server.jobs.events import Ended
from darkroom_server.jobs.mailbox import Mailbox
from darkroom_server.models.residency import Loading

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel

    from darkroom_plugins.contract import AssetKind, SchedulerEntry
    from darkroom_plugins.manager import PluginInfo
    from darkroom_server.api.context import CallContext
    from darkroom_server.api.load import ServerLoad
    from darkroom_server.models.asset_folders import AssetFolders
    from darkroom_server.models.assets import Asset
    from darkroom_server.models.catalog import Catalog
    from darkroom_server.models.model import Model
    from darkroom_server.models.residency import Key, ResidencyManager

CHANGES: dict[str, Any] = {
    "added": pb.ASSET_CHANGE_KIND_ADDED,
    "removed": pb.ASSET_CHANGE_KIND_REMOVED,
    "waiting": pb.ASSET_CHANGE_KIND_WAITING,
    "refused": pb.ASSET_CHANGE_KIND_REFUSED,
}

Context: TypeAlias = "CallContext"


class CatalogService(catalog_service_pb2_grpc.CatalogServiceServicer):
    """Serves the catalog; each list is sorted by name."""

    def __init__(
        self,
        catalog: Catalog,
        residency: ResidencyManager,
        keep_results_seconds: float,
        threads: int,
        deterministic_rows: int | None,
        load: ServerLoad,
        folders: AssetFolders,
    ) -> None:
        """`threads`: of deterministic jobs on a CPU. `deterministic_rows`: see `Settings`."""
        self._catalog, self._keep_results_seconds = catalog, keep_results_seconds
        self._threads, self._deterministic_rows = threads, deterministic_rows
        self._resident, self._load, self._folders = residency, load, folders

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        limits = self._catalog.limits
        given = limits.model_dump() | {"max_queued_jobs_per_client": limits.queued_jobs_per_client}
        return pb.GetServerInfoResponse(
            version=VERSION,
            api_version="darkroom.v1",
            torch_version=torch.__version__,
            diffusers_version=diffusers.__version__,
            devices=[self._device(d) for d in dict.fromkeys(m.family.device for m in self._catalog.models.values())],
            limits=pb.ServerLimits(**given, job_retention_seconds=self._keep_results_seconds),
            plugins=[_plugin(info) for info in self._catalog.plugins.infos],
            default_model=self._catalog.default_model,
        )

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        models = sorted(self._catalog.models.items())
        return pb.ListModelsResponse(models=[self._model(model) for name, model in models if quotas.may_use(name)])

    async def ListTasks(self, request: pb.ListTasksRequest, context: Context) -> pb.ListTasksResponse:
        plugins = self._catalog.plugins
        tasks = [
            pb.Task(
                name=name,
                description=task.description,
                rpcs=task.rpcs,
                plugin=plugins.owner("tasks", name),
                parameters_schema=_schema(task.Parameters),
            )
            for name, task in sorted(plugins.tasks.items())
        ]
        return pb.ListTasksResponse(tasks=tasks)

    async def ListSchedulers(self, request: pb.ListSchedulersRequest, context: Context) -> pb.ListSchedulersResponse:
        entries = sorted(self._catalog.plugins.schedulers.items())
        return pb.ListSchedulersResponse(schedulers=[self._scheduler(entry) for _, entry in entries])

    async def ListLoras(self, request: pb.ListLorasRequest, context: Context) -> pb.ListLorasResponse:
        loras = [
            pb.Lora(components=asset.info.components, **self._asset(asset)) for asset in self._assets("lora").values()
        ]
        return pb.ListLorasResponse(loras=loras)

    async def ListControlNets(self, request: pb.ListControlNetsRequest, context: Context) -> pb.ListControlNetsResponse:
        nets = [
            pb.ControlNet(
                preprocessor=asset.settings.preprocessor or "",
                residency=self._residency(*(("controlnet", asset.settings.name, model) for model in asset.fits)),
                **self._asset(asset),
            )
            for asset in self._assets("controlnet").values()
        ]
        return pb.ListControlNetsResponse(control_nets=nets)

    async def ListPreprocessors(
        self, request: pb.ListPreprocessorsRequest, context: Context
    ) -> pb.ListPreprocessorsResponse:
        plugins = self._catalog.plugins
        entries = [
            pb.Preprocessor(
                name=name,
                description=entry.description,
                parameters_schema=_schema(entry.Parameters),
                plugin=plugins.owner("preprocessors", name),
            )
            for name, entry in sorted(plugins.preprocessors.items())
        ]
        return pb.ListPreprocessorsResponse(preprocessors=entries)

    async def LoadModel(self, request: pb.LoadModelRequest, context: Context) -> None:
        _refuse_replicas(request)
        model, progress = self._named(request.model), Mailbox()
        key = ("model", model.name)
        loading = asyncio.create_task(self._resident.acquire([key], progress.put, wait=False))

        def loaded(task: asyncio.Task[Any]) -> None:
            if not task.cancelled() and task.exception() is None:  # whether its client is still there or not
                self._resident.release([key])
            progress.put(Ended())

        loading.add_done_callback(loaded)
        try:
            while isinstance(event := (await progress.get())[1], Loading):
                await context.write(pb.LoadModelResponse(loading=messages.loading(event)))
            await loading
        finally:
            loading.cancel()
        await context.write(pb.LoadModelResponse(model=self._model(model)))

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:
        _refuse_replicas(request)
        freed = await self._resident.unload(("model", self._named(request.model).name))
        return pb.UnloadModelResponse(freed_bytes=freed)

    async def GetServerLoad(self, request: pb.GetServerLoadRequest, context: Context) -> pb.GetServerLoadResponse:
        return self._load.message()

    async def RescanAssets(self, request: pb.RescanAssetsRequest, context: Context) -> pb.RescanAssetsResponse:
        changes = [
            pb.AssetChange(kind=each.kind, name=each.name, what=CHANGES[each.what], detail=each.detail)
            for each in await self._folders.look()
        ]
        return pb.RescanAssetsResponse(changes=changes)

    def _named(self, name: str) -> Model:
        """:raises RequestRefused: no such model"""
        if not name:
            raise InvalidRequest([Violation("model", "must be set")])
        quotas.admit_model(name)
        models = self._catalog.models
        if name not in models:
            raise NotFound("model", [Violation("model", no_such("model", name, models))])
        return models[name]

    def _assets(self, kind: AssetKind) -> Mapping[str, Asset]:
        return self._catalog.assets.entries[kind]

    def _asset(self, asset: Asset) -> dict[str, Any]:
        families = {self._catalog.models[name].info.family for name in asset.fits}
        return {
            "name": asset.settings.name,
            "description": asset.settings.description,
            "family": families.pop() if len(families) == 1 else "",
            "models": asset.fits,
            "weight_bytes": asset.info.weight_bytes,
            "unusable": asset.unusable,
        }

    def _residency(self, *keys: Key) -> pb.Residency:
        """The residency of an asset; of several copies, the one nearest to the device."""
        found = (RESIDENCIES[self._resident[key].residency] for key in keys)
        return max(found, default=pb.RESIDENCY_ABSENT)

    def _device(self, device: torch.device) -> pb.Device:
        rows = row_bucket(device, self._deterministic_rows)
        common: dict[str, Any] = {"id": str(device), "deterministic_rows": rows}
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            capability = f"{properties.major}.{properties.minor}"
            memory = properties.total_memory
            return pb.Device(name=properties.name, memory_bytes=memory, instructions=capability, **common)
        instructions = torch.backends.cpu.get_cpu_capability()
        return pb.Device(name=device.type.upper(), threads=self._threads, instructions=instructions, **common)

    def _model(self, model: Model) -> pb.Model:
        settings, info = model.settings, model.info
        low, high = self._catalog.size_range(model)
        return pb.Model(
            name=model.name,
            description=settings.description,
            is_default=model.name == self._catalog.default_model,
            family=info.family,
            tasks=self._catalog.tasks(model),
            prediction_type=info.prediction_type,
            size_factor=info.size_factor,
            default_width=info.default_width,
            default_height=info.default_height,
            min_size=low,
            max_size=high,
            max_pixels=self._catalog.max_pixels(model),
            default_scheduler=model.default_scheduler,
            default_num_inference_steps=settings.default_num_inference_steps,
            default_guidance_scale=settings.default_guidance_scale,
            preview_modes=[preview_mode(mode) for mode in model.preview_modes],
            default_preview_mode=preview_mode(model.default_preview_mode),
            residency=self._residency(("model", model.name)),
            weight_bytes=model.family.weight_bytes,
            device=str(model.family.device),
            dtype=str(model.family.dtype).removeprefix("torch."),
            max_cache_interval=model.max_cache_interval,
            safety_policy=f"SAFETY_POLICY_{settings.safety.upper()}",
            presets=[
                pb.Preset(name=name, description=preset.description, parameters=parameters_of(preset))
                for name, preset in sorted(settings.presets.items())
            ],
        )

    def _scheduler(self, entry: SchedulerEntry) -> pb.Scheduler:
        low, high = self._catalog.step_range(entry.name)
        sigmas: list[Any] = [f"SIGMA_SCHEDULE_{name.upper()}" for name in entry.sigma_schedules]
        spacings: list[Any] = [f"TIMESTEP_SPACING_{name.upper()}" for name in entry.timestep_spacings]
        return pb.Scheduler(
            name=entry.name,
            aliases=entry.aliases,
            diffusers_class=entry.class_name,
            description=entry.description,
            min_steps=low,
            max_steps=high,
            sigma_schedules=sigmas,
            timestep_spacings=spacings,
            takes_eta=entry.takes_eta,
            parameters_schema=_schema(entry.Parameters),
            plugin=self._catalog.plugins.owner("schedulers", entry.name),
        )


def _refuse_replicas(request: pb.LoadModelRequest | pb.UnloadModelRequest) -> None:
    """:raises InvalidRequest: the request names replicas, and there are none"""
    if request.replicas:
        raise InvalidRequest([Violation("replicas", "must be empty: the server is no cluster")])


def _plugin(info: PluginInfo) -> pb.Plugin:
    schema = _schema(info.parameters)
    return pb.Plugin(
        name=info.name, version=info.version, hooks=info.hooks, extensions_schema=schema, builtin=info.builtin
    )


def _schema(parameters: type[BaseModel] | None) -> Struct | None:
    return ParseDict(parameters.model_json_schema(), Struct()) if parameters else None
