"""The planner: decides who makes a job's images, and how."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakValueDictionary

from darkroom_plugins import calls
from darkroom_plugins.contract import BatchContract, Conditioner, Contribution, Participant, SchedulerEntry, Task
from darkroom_plugins.errors import InvalidRequest, UnsupportedCombination, Violation
from darkroom_plugins.files import LOADING
from darkroom_plugins.request import Pixels, Request
from darkroom_plugins.sample import PromptPiece
from darkroom_server.device.threads import single_threaded_pool
from darkroom_server.errors import LoadFailed, to_domain_error
from darkroom_server.jobs.plan import Plan
from darkroom_server.schedulers.schedule import Steps, count_steps
from darkroom_server.schedulers.tables import Tables

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

EMBEDDING_BYTES = 64 * 2**20  # of textual inversions, of which one has some 10 KiB


class Inputs(NamedTuple):
    """A job's pictures at the size at which the model works."""

    canvas: Canvas
    controls: tuple[Pixels, ...]  # the map of each of the request's controls


class Planner:
    """Plans requests, on threads of its own. `plan`, `read` and `close` are for the event loop."""

    def __init__(self, catalog: Catalog, reader_threads: int) -> None:
        self._catalog = catalog
        self._readers = single_threaded_pool("reader", reader_threads)
        self._thread = single_threaded_pool("planner")  # one, as tokenizers are not thread-safe
        self._tables = Tables()
        self._embeddings = EmbeddingCache()
        # What jobs that ask alike share: it takes milliseconds to make, and tens of kilobytes.
        self._shared: WeakValueDictionary[Any, Any] = WeakValueDictionary()
        self._recent: deque[Any] = deque(maxlen=128)  # keeps what the last ones shared

    async def read(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a function that decodes or checks what came with a request, run on a reader's thread."""
        return await _run(self._readers, function, *arguments)

    async def plan(self, request: Request) -> Plan:
        """The plan of a checked request.

        :raises InvalidRequest: the scheduler refuses what is asked of it, or an extension has no use
        :raises DarkroomError: what a plugin raised
        """
        inputs = await _run(self._readers, self._prepare_inputs, request)
        plan: Plan = await _run(self._thread, self._plan, request, inputs)
        if request.deterministic:
            return plan
        return replace(plan, table=await self._tables.of(plan.scheduler, plan.steps.first, request.eta))

    def close(self) -> None:
        """Let go of the threads; a plugin that hangs in one does not hold up the end."""
        for pool in (self._readers, self._thread):
            pool.shutdown(wait=False, cancel_futures=True)
        self._tables.close()

    def _prepare_inputs(self, request: Request) -> Inputs:
        """The pictures of a request at the working size, and the maps that preprocessors make of them."""
        task = self._catalog.plugins.tasks[request.task]
        with calls.calling(task, "canvas"):
            canvas = task.canvas(request, calls.parameters_of(task, request))
        return Inputs(canvas, self._maps(request, canvas))

    def _maps(self, request: Request, canvas: Canvas) -> tuple[Pixels, ...]:
        """The map of each control, at the working size: made there, so that its lines are as fine as they can be."""
        maps = []
        for index, control in enumerate(request.controls):
            assert control.image is not None
            pixels = canvas.place(control.image, f"parameters.controls[{index}].image")
            if control.preprocessor:
                entry = self._catalog.plugins.preprocessors[control.preprocessor]
                pixels = calls.preprocess(entry, pixels, control.options)
            maps.append(pixels)
        return tuple(maps)

    def _plan(self, request: Request, inputs: Inputs) -> Plan:
        plugins, model = self._catalog.plugins, self._catalog.models[request.model]
        task, entry = plugins.tasks[request.task], plugins.schedulers[request.scheduler.name]
        _refuse_scheduler_without_noise(task, entry)
        conditioners = wanting(plugins.conditioners, request)
        adapters, finishers = wanting(plugins.adapters, request), wanting(plugins.finishers, request)
        _refuse_unused_extensions(request, (task, *conditioners, *adapters, *finishers))
        scheduler, steps = self._steps(request, model, task, entry)
        assets = PlanningAssets(self._embeddings, model, self._catalog.assets.fitting(model.name))
        with calls.calling(model.family, "prompt_keys", timed=False):
            prompts = model.family.prompt_keys(request, partial(_read, conditioners, request, assets))
        previews = plugins.preview_decoders.get(request.preview.mode)
        return Plan(
            # The pictures that maps were made of are not needed any more.
            request=replace(request, controls=tuple(replace(each, image=None) for each in request.controls)),
            model=model,
            task=task,
            conditioners=conditioners,
            adapters=adapters,
            # Those with parameters come first.
            finishers=tuple(sorted(finishers, key=lambda finisher: finisher.Parameters is None)),
            entry=entry,
            scheduler=scheduler,
            steps=steps,
            prompts=prompts,
            canvas=inputs.canvas,
            controls=inputs.controls,
            needs=needs(request),
            batch_key=_batch_key(request, (task, *conditioners, *adapters), prompts[0].length),
            solo=_is_solo(request, (task, *conditioners, *adapters)),
            preview_by_network=previews is not None and previews.component is not None,
        )

    def _steps(self, request: Request, model: Model, task: Task, entry: SchedulerEntry) -> tuple[Any, Steps]:
        """A scheduler with its timesteps, and which of them are taken."""
        asked = model.name, repr(request.scheduler), request.num_inference_steps
        scheduler = self._shared.get(asked) or _scheduler(request, model, entry)
        with calls.calling(task, "first_evaluation"):
            parameters = calls.parameters_of(task, request)
            first = task.first_evaluation(request, scheduler.timesteps, scheduler.order, parameters)
            if not 0 <= first <= len(scheduler.timesteps):
                raise ValueError(f"it begins with evaluation {first} of {len(scheduler.timesteps)}")
        steps = self._shared.get((asked, first)) or count_steps(
            scheduler.timesteps, first, scheduler.order, request.num_inference_steps
        )
        self._shared.update({asked: scheduler, (asked, first): steps})
        self._recent.append((scheduler, steps))
        return scheduler, steps


class EmbeddingCache:
    """Textual inversions read last; for the planner's thread, as they are part of how a prompt is read."""

    def __init__(self, capacity: int = EMBEDDING_BYTES) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[tuple[str, str], tuple[Any, int]] = OrderedDict()  # by name and model

    def get(self, asset: Asset, model: Model) -> Any:
        """What the plugin made of the file.

        :raises LoadFailed: it cannot be read
        """
        key = asset.settings.name, model.name
        if key not in self._kept:
            self._kept[key] = _load(asset, model), asset.info.weight_bytes
        self._kept.move_to_end(key)
        while sum(size for _, size in self._kept.values()) > self._capacity and len(self._kept) > 1:
            self._kept.popitem(last=False)
        return self._kept[key][0]


@dataclass(frozen=True, slots=True)
class PlanningAssets:
    """The assets of one model while a prompt is read: what `Conditioner.read_prompt` sees."""

    embeddings: EmbeddingCache
    model: Model
    fitting: Mapping[AssetKind, Mapping[str, Asset]]

    def names(self, kind: AssetKind) -> Sequence[str]:
        """Those that fit the model, sorted."""
        return sorted(self.fitting[kind])

    def get(self, kind: AssetKind, name: str) -> Any:
        """An embedding; what else there is has to be loaded first, which jobs wait for once they are planned."""
        if kind != "embedding":
            raise KeyError(f"{kind} {name} is not there before the job's turn comes")
        return self.embeddings.get(self.fitting[kind][name], self.model)


def wanting(table: Mapping[str, Any], request: Request) -> tuple[Any, ...]:
    """The contributions that take part in a request, in the order of their names."""
    return tuple(each for _, each in sorted(table.items()) if _wants(each, request))


def _wants(participant: Participant, request: Request) -> bool:
    with calls.calling(participant, "wants"):
        return bool(participant.wants(request, calls.parameters_of(participant, request)))


def needs(request: Request) -> tuple[Key, ...]:
    """The keys of what must be resident for a request."""
    nets = [("controlnet", control.model) for control in request.controls if control.scale > 0]
    loras = [("lora", lora.name) for lora in request.loras if lora.weight != 0]
    return ("model", request.model), *((*each, request.model) for each in (*nets, *loras))


def _batch_key(request: Request, parts: Sequence[Contribution], length: int) -> tuple[Hashable, ...]:
    """What must be equal to share an evaluation; `length` is that of the prompts, in tokens."""
    keys = tuple((part.name, _key(part, request)) for part in parts if part.contract is BatchContract.KEYED)
    return request.model, request.width, request.height, length, keys, _is_solo(request, parts)


def _key(part: Contribution, request: Request) -> Hashable:
    with calls.calling(part, "key"):
        key = part.key(request, calls.parameters_of(part, request))
        hash(key)
        return key


def _is_solo(request: Request, parts: Sequence[Contribution]) -> bool:
    return request.deterministic or any(part.contract is BatchContract.SOLO for part in parts)


async def _run(pool: Executor, function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function on another thread.

    :raises DarkroomError: it failed, by whatever
    """

    def run() -> Any:
        try:
            return function(*arguments)
        except BaseException as error:  # SystemExit in a plugin, too
            raise to_domain_error(error) from None

    return await asyncio.get_running_loop().run_in_executor(pool, run)


def _read(
    conditioners: Sequence[Conditioner], request: Request, assets: PlanningAssets, text: str
) -> tuple[PromptPiece, ...]:
    """A prompt's text as the conditioners read it, one after the other."""
    pieces: tuple[PromptPiece, ...] = (PromptPiece(text),)
    for conditioner in conditioners:
        with calls.calling(conditioner, "read_prompt"):
            pieces = conditioner.read_prompt(pieces, request, assets, calls.parameters_of(conditioner, request))
    return pieces


def _load(asset: Asset, model: Model) -> Any:
    name = asset.settings.name
    try:
        return asset.user.load_asset(asset.path, model.family)
    except MemoryError:
        raise
    except Exception as error:
        log.error("embedding %s for model %s does not load", name, model.name, exc_info=error)
        message = f"embedding {name} for model {model.name} does not load; the server's log says why"
        raise LoadFailed(message, ("embedding", name, model.name)) from error


def _refuse_unused_extensions(request: Request, parts: Sequence[Any]) -> None:
    """:raises InvalidRequest: parameters came for a plugin of which nothing that takes some is at work"""
    used = {part.plugin for part in parts if part.Parameters}
    problem = "the request uses nothing of this plugin that takes parameters"
    if unused := sorted(set(request.extensions) - used):
        raise InvalidRequest([Violation(f"parameters.extensions[{name}]", problem) for name in unused])


def _refuse_scheduler_without_noise(task: Task, entry: SchedulerEntry) -> None:
    """:raises UnsupportedCombination: the task begins with a picture under noise, which the scheduler cannot add"""
    if task.adds_noise and not hasattr(entry.scheduler, "add_noise"):
        problem = f"the scheduler {entry.name} cannot begin with a picture, as the task {task.name} does"
        raise UnsupportedCombination([Violation("parameters.scheduler", problem)])


def _scheduler(request: Request, model: Model, entry: SchedulerEntry) -> Any:
    """A scheduler with its timesteps, on the CPU: nothing in a step then waits for the device."""
    try:
        with LOADING:
            scheduler = entry.build(model.family.scheduler_config, request.scheduler)
            scheduler.set_timesteps(request.num_inference_steps)
    except Exception as error:  # diffusers raises ValueError, but also others, for what its classes cannot do
        log.info("scheduler %s: %r", entry.name, error)
        problem = f"the scheduler {entry.name} cannot take this number of steps with these options"
        raise InvalidRequest([Violation("parameters.scheduler", problem)]) from error
    return scheduler
