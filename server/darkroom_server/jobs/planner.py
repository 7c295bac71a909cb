"""The planner: turns checked requests into plans."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakValueDictionary

from darkroom_plugins import calls
from darkroom_plugins.contract import BatchContract, Contribution, SchedulerEntry, Task
from darkroom_plugins.errors import InvalidRequest, UnsupportedCombination, Violation
from darkroom_plugins.files import LOADING
from darkroom_plugins.request import Pixels, Request
from darkroom_server.device.resources import row_bucket, row_buckets, total_memory
from darkroom_server.device.threads import single_threaded_pool
from darkroom_server.errors import LoadFailed, to_domain_error
from darkroom_server.jobs.plan import Plan
from darkroom_server.networks.decode_cost import DecodeCosts
from darkroom_server.schedulers.schedule import ZERO_SNR, Steps, count_steps, lacks_zero_snr
from darkroom_server.schedulers.scheduler import copy_scheduler
from darkroom_server.schedulers.tables import Table, Tables, make_table

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from darkroom_plugins.canvas import Canvas
    from darkroom_plugins.contract import AssetKind
    from darkroom_server.models.assets import Asset
    from darkroom_server.models.catalog import Catalog
    from darkroom_server.models.model import Model
    from darkroom_server.models.residency import Key

log = logging.getLogger(__name__)

MIB = 2**20
EMBEDDING_BYTES = 64 * MIB  # of textual inversions, some 10 KiB each


class Inputs(NamedTuple):
    """A job's input images at the model's working size."""

    canvas: Canvas
    controls: tuple[Pixels, ...]  # the map of each of the request's controls


class Planner:
    """Plans requests, on threads of its own. `plan`, `read` and `close` are for the event loop."""

    def __init__(
        self,
        catalog: Catalog,
        reader_threads: int,
        max_decode_bytes: int | None = None,
        deterministic_rows: int | None = None,
        buckets: Sequence[int] | None = None,
    ) -> None:
        """`max_decode_bytes`: the memory to decode one picture; None: all that the model's device has.
        `deterministic_rows`, `buckets` (`row_buckets`): see `Settings`."""
        self._catalog = catalog
        self._max_decode_bytes, self._deterministic_rows = max_decode_bytes, deterministic_rows
        self._row_buckets = buckets
        self._readers = single_threaded_pool("reader", reader_threads)
        self._thread = single_threaded_pool("planner")  # one, as tokenizers are not thread-safe
        self._tables = Tables()
        self._embeddings = EmbeddingCache()
        self._decode_costs: dict[str, DecodeCosts | None] = {}  # by model
        # Schedulers and steps, shared by jobs with equal options: milliseconds to build, tens of kilobytes.
        self._schedules: WeakValueDictionary[Any, Any] = WeakValueDictionary()
        self._recent_schedules: deque[Any] = deque(maxlen=384)  # keeps the latest alive; a stage uses three

    async def read(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a function that decodes or checks inputs of a request, run on a reader's thread."""
        return await _run(self._readers, function, *arguments)

    async def plan(self, request: Request) -> Plan:
        """The plan of a checked request.

        :raises InvalidRequest: the scheduler refuses its options or step count, or divides by zero with them, or an
            extension is unused
        :raises DarkroomError: a plugin failed
        """
        plan, second = await self._plan_stage(request, "parameters"), request.second_stage
        if second is not None:
            following = await self._plan_stage(second, "parameters.hires_fix")
            plan = replace(plan, following=replace(following, finishers=plan.finishers))  # which see the whole request
        _refuse_unused_extensions(request, plan)
        return plan

    async def _plan_stage(self, request: Request, path: str) -> Plan:
        """`path`: of the message that has its size."""
        inputs = await _run(self._readers, self._prepare_inputs, request)
        plan: Plan = await _run(self._thread, self._plan, request, inputs, path)
        table = await self._tables.of(plan.scheduler, plan.steps.first, request.eta)
        _refuse_faulty(table, request, plan.model, path)
        return plan if request.deterministic else replace(plan, table=table)

    def close(self) -> None:
        """Shut the threads down, without waiting for plugins that hang in them."""
        for pool in (self._readers, self._thread):
            pool.shutdown(wait=False, cancel_futures=True)
        self._tables.close()

    def _prepare_inputs(self, request: Request) -> Inputs:
        """A request's images at the working size, and its control maps."""
        task = self._catalog.plugins.tasks[request.task]
        canvas = calls.canvas(task, request)
        return Inputs(canvas, self._maps(request, canvas))

    def _maps(self, request: Request, canvas: Canvas) -> tuple[Pixels, ...]:
        """The map of each control; preprocessors run at the working size, for the finest lines."""
        maps = []
        for index, control in enumerate(request.controls):
            assert control.image is not None
            pixels = canvas.place(control.image, f"parameters.controls[{index}].image")
            if control.preprocessor:
                entry = self._catalog.plugins.preprocessors[control.preprocessor]
                pixels = calls.preprocess(entry, pixels, control.options)
            maps.append(pixels)
        return tuple(maps)

    def _plan(self, request: Request, inputs: Inputs, path: str) -> Plan:
        plugins, model = self._catalog.plugins, self._catalog.models[request.model]
        task, entry = plugins.tasks[request.task], plugins.schedulers[request.scheduler.name]
        _refuse_scheduler_without_noise(task, entry)
        _refuse_scheduler_without_zero_snr(model, entry, plugins.schedulers)
        conditioners = participants(plugins.conditioners, request)
        adapters, finishers = participants(plugins.adapters, request), participants(plugins.finishers, request)
        scheduler, steps = self._build_steps(request, model, task, entry)
        assets = PlanningAssets(self._embeddings, model, self._catalog.assets.fitting(model.name))
        with calls.calling(model.family, "prompt_keys", timed=False):
            prompts = model.family.prompt_keys(request, partial(calls.read_prompt, conditioners, request, assets))
        previews = plugins.preview_decoders.get(request.preview.mode)
        return Plan(
            # Without the images that control maps were made from.
            request=replace(request, controls=tuple(replace(each, image=None) for each in request.controls)),
            model=model,
            task=task,
            conditioners=conditioners,
            adapters=adapters,
            # Finishers with parameters run first.
            finishers=tuple(sorted(finishers, key=lambda finisher: finisher.Parameters is None)),
            entry=entry,
            scheduler=scheduler,
            steps=steps,
            prompts=prompts,
            canvas=inputs.canvas,
            controls=inputs.controls,
            needs=needs(request),
            tiled=self._decodes_in_tiles(request, model, path),
            batch_key=_batch_key(request, (task, *conditioners, *adapters), prompts[0].length),
            solo=(solo := _is_solo((task, *conditioners, *adapters))),
            bucket=row_bucket(model.family.device, self._deterministic_rows)
            if request.deterministic and not solo
            else 0,
            row_buckets=()
            if solo
            else row_buckets(model.family.device, self._catalog.limits.max_batch_rows, self._row_buckets),
            preview_by_network=previews is not None and previews.component is not None,
        )

    def _decodes_in_tiles(self, request: Request, model: Model, path: str) -> bool:
        """Whether to decode the request's pictures in tiles.

        :raises InvalidRequest: they do not fit into the memory even so
        """
        if model.name not in self._decode_costs:
            self._decode_costs[model.name] = DecodeCosts.of(model.family)
        costs = self._decode_costs[model.name]
        if costs is None:
            return False
        _, high, wide = model.family.latent_shape(request.width, request.height)
        memory = self._max_decode_bytes or total_memory(model.family.device)
        least = costs.tiled(high, wide).bytes
        if least > memory:
            takes = f"takes at least {least / MIB:,.0f} MiB to decode, more than the {memory / MIB:,.0f} there are"
            problem = f"a picture of {request.width} x {request.height} pixels {takes}"
            raise InvalidRequest([Violation(f"{path}.width", problem)])
        return not model.settings.vae_tiling and costs.tiles_pay(high, wide, memory)

    def _build_steps(self, request: Request, model: Model, task: Task, entry: SchedulerEntry) -> tuple[Any, Steps]:
        """The scheduler with its timesteps, and the steps from the task's first evaluation on."""
        count, choice = request.num_inference_steps, (model.name, repr(request.scheduler))
        built = self._kept(choice, lambda: _build_scheduler(request, model, entry))
        scheduler = self._kept((choice, count), lambda: _with_timesteps(built, request, entry))
        first = calls.first_evaluation(task, request, scheduler)
        steps = self._kept(
            (choice, count, first), lambda: count_steps(scheduler.timesteps, first, scheduler.order, count)
        )
        return scheduler, steps

    def _kept(self, key: Hashable, make: Callable[[], Any]) -> Any:
        value = self._schedules.get(key)
        if value is None:
            value = self._schedules[key] = make()
        self._recent_schedules.append(value)
        return value


def check_scheduler(request: Request, model: Model, entries: Mapping[str, SchedulerEntry]) -> None:
    """Refuse what planning would refuse about the scheduler of a request, whatever its task.

    :raises RequestRefused: as `Planner.plan`
    """
    entry = entries[request.scheduler.name]
    _refuse_scheduler_without_zero_snr(model, entry, entries)
    scheduler = _with_timesteps(_build_scheduler(request, model, entry), request, entry)
    _refuse_faulty(make_table(scheduler, 0, request.eta), request, model, "parameters")


class EmbeddingCache:
    """LRU cache of textual inversions. For the planner's thread, which reads prompts."""

    def __init__(self, capacity: int = EMBEDDING_BYTES) -> None:
        self._capacity = capacity
        # By name and model: the embedding, its bytes, and the asset that it is of, as another may get the name.
        self._entries: OrderedDict[tuple[str, str], tuple[Any, int, Asset]] = OrderedDict()

    def get(self, asset: Asset, model: Model) -> Any:
        """The embedding, as its plugin loads it.

        :raises LoadFailed: it cannot be read
        """
        key = asset.settings.name, model.name
        if key not in self._entries or self._entries[key][2] is not asset:
            self._entries[key] = _load_embedding(asset, model), asset.info.weight_bytes, asset
        self._entries.move_to_end(key)
        while sum(size for _, size, _ in self._entries.values()) > self._capacity and len(self._entries) > 1:
            self._entries.popitem(last=False)
        return self._entries[key][0]


@dataclass(frozen=True, slots=True)
class PlanningAssets:
    """The assets of one model for `Conditioner.read_prompt`."""

    embeddings: EmbeddingCache
    model: Model
    fitting: Mapping[AssetKind, Mapping[str, Asset]]

    def names(self, kind: AssetKind) -> Sequence[str]:
        """The names of assets that fit the model, sorted."""
        return sorted(self.fitting[kind])

    def get(self, kind: AssetKind, name: str) -> Any:
        """An embedding; other kinds are loaded only after planning."""
        if kind != "embedding":
            raise KeyError(f"{kind} {name} is not there before the job's turn comes")
        return self.embeddings.get(self.fitting[kind][name], self.model)


def participants(table: Mapping[str, Any], request: Request) -> tuple[Any, ...]:
    """The contributions that take part in a request, sorted by name."""
    return tuple(each for _, each in sorted(table.items()) if calls.wants(each, request))


def needs(request: Request) -> tuple[Key, ...]:
    """The residency keys of a request: its model, ControlNets and LoRAs."""
    nets = [("controlnet", control.model) for control in request.controls if control.scale > 0]
    loras = [("lora", lora.name) for lora in request.loras if lora.weight != 0]
    return ("model", request.model), *((*each, request.model) for each in (*nets, *loras))


def _batch_key(request: Request, parts: Sequence[Contribution], length: int) -> tuple[Hashable, ...]:
    """The batch key: jobs with equal keys share evaluations. `length` is the prompts', in tokens."""
    keys = tuple((part.name, _key(part, request)) for part in parts if part.contract is BatchContract.KEYED)
    return request.model, request.width, request.height, length, keys, _is_solo(parts), request.deterministic


def _key(part: Contribution, request: Request) -> Hashable:
    with calls.calling(part, "key"):
        key = part.key(request, calls.parameters_of(part, request))
        hash(key)
        return key


def _is_solo(parts: Sequence[Contribution]) -> bool:
    return any(part.contract is BatchContract.SOLO for part in parts)


async def _run(pool: Executor, function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function on another thread.

    :raises DarkroomError: whatever it raised, as a domain error
    """

    def run() -> Any:
        try:
            return function(*arguments)
        except BaseException as error:  # plugins may raise SystemExit, too
            raise to_domain_error(error) from None

    return await asyncio.get_running_loop().run_in_executor(pool, run)


def _load_embedding(asset: Asset, model: Model) -> Any:
    name = asset.settings.name
    try:
        return asset.user.load_asset(asset.path, model.family)
    except MemoryError:
        raise
    except Exception as error:
        log.error("embedding %s for model %s does not load", name, model.name, exc_info=error)
        message = f"embedding {name} for model {model.name} does not load; the server's log says why"
        raise LoadFailed(message, ("embedding", name, model.name)) from error


def _refuse_unused_extensions(request: Request, plan: Plan) -> None:
    """:raises InvalidRequest: the request has parameters for a plugin that does not use them"""
    parts = (part for stage in plan.stages for part in stage.contributions)
    used = {part.plugin for part in parts if part.Parameters}
    problem = "the request uses nothing of this plugin that takes parameters"
    if unused := sorted(set(request.extensions) - used):
        raise InvalidRequest([Violation(f"parameters.extensions[{name}]", problem) for name in unused])


def _refuse_scheduler_without_noise(task: Task, entry: SchedulerEntry) -> None:
    """:raises UnsupportedCombination: the task begins with a noised image, and the scheduler has no `add_noise`"""
    if task.adds_noise and not hasattr(entry.scheduler, "add_noise"):
        problem = f"the scheduler {entry.name} cannot begin with a picture, as the task {task.name} does"
        raise UnsupportedCombination([Violation("parameters.scheduler", problem)])


def _refuse_scheduler_without_zero_snr(
    model: Model, entry: SchedulerEntry, entries: Mapping[str, SchedulerEntry]
) -> None:
    """:raises UnsupportedCombination: the model begins at a signal-to-noise ratio of zero, the scheduler does not"""
    zero_snr = model.family.scheduler_config.get(ZERO_SNR)
    if zero_snr and (problem := lacks_zero_snr(entry, entries, model.name)):
        raise UnsupportedCombination([Violation("parameters.scheduler", problem)])


def _refuse_faulty(table: Table, request: Request, model: Model, path: str) -> None:
    """`path`: of the message that has the number of steps.

    :raises InvalidRequest: the scheduler would fail, or end in pictures without finite values
    """
    choice, count, kind = request.scheduler, request.num_inference_steps, model.info.prediction_type
    if table.fault is None:
        return
    if table.fault == "fails":
        problem = f"{choice.name} cannot take {count} steps with these options on the model {model.name}, but fewer"
        raise InvalidRequest([Violation(f"{path}.num_inference_steps", problem)])
    options = choice.options.model_dump(exclude_none=True) if choice.options else {}
    chosen = {f"options.{name}": value for name, value in options.items()}
    chosen |= {"sigma_schedule": choice.sigma_schedule, "timestep_spacing": choice.timestep_spacing}
    fields = [f"parameters.scheduler.{name}" for name, value in chosen.items() if value is not None]
    problem = f"{choice.name} divides by zero with this in {count} steps on a model that predicts {kind}"
    raise InvalidRequest([Violation(field, problem) for field in fields or ["parameters.scheduler"]])


def _build_scheduler(request: Request, model: Model, entry: SchedulerEntry) -> Any:
    """A scheduler without timesteps. DPM2's constructor takes 0.4 s, as it makes its longest schedule."""
    with _refusing_options(entry):
        return entry.build(model.family.scheduler_config, request.scheduler)


def _with_timesteps(scheduler: Any, request: Request, entry: SchedulerEntry) -> Any:
    """A copy with its timesteps, on the CPU, so that no step synchronizes with the device."""
    with _refusing_options(entry):
        copied = copy_scheduler(scheduler)
        copied.set_timesteps(request.num_inference_steps)
    return copied


@contextmanager
def _refusing_options(entry: SchedulerEntry) -> Iterator[None]:
    """:raises InvalidRequest: for what the scheduler raises"""
    try:
        with LOADING:
            yield
    except Exception as error:  # diffusers raises more than ValueError for unsupported options
        log.info("scheduler %s: %r", entry.name, error)
        problem = f"the scheduler {entry.name} cannot take this number of steps with these options"
        raise InvalidRequest([Violation("parameters.scheduler", problem)]) from error
