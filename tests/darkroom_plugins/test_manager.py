"""Plugins are found, checked and listed; and each of the eight hooks does in a real server what its docstring says."""

import contextlib
import inspect
import io
import threading
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from PIL import Image
from pydantic import BaseModel

from darkroom.v1 import parameters_pb2 as pb
from darkroom_plugins import contract, hookimpl, hookspecs, manager
from darkroom_plugins.contract import (
    Adapter,
    BatchContract,
    Conditioner,
    Finisher,
    Preprocessor,
    PreviewDecoder,
    SchedulerEntry,
    Task,
)
from darkroom_plugins.manager import KINDS, VERSION, PluginError, load_plugins
from darkroom_plugins.sample import PromptEmbedding
from tests.noise_family import Noise, save_noise
from tests.support import RunningServer, generate_request

HOOKS = {name: each for name, each in vars(hookspecs).items() if name.startswith("darkroom_")}


def plugin(version: int | None = 1, **hooks: Callable[[], Any]) -> types.SimpleNamespace:
    """A plugin whose hooks, named without prefix, are these functions."""
    implementations = {f"darkroom_{name}": hookimpl(_fresh(function)) for name, function in hooks.items()}
    return types.SimpleNamespace(**implementations, **({} if version is None else {"darkroom_api_version": version}))


def _fresh(function: Callable[[], Any]) -> Callable[[], Any]:
    def implementation() -> Any:
        return function()

    return implementation


def refusal(extra: dict[str, object] | None = None, **arguments: Any) -> str:
    with pytest.raises(PluginError) as caught:
        load_plugins(extra=extra, **arguments)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------------ loading


def test_builtins_and_the_installed_example_are_found() -> None:
    infos = {info.name: info for info in load_plugins().infos}
    assert list(infos) == sorted(infos)
    assert {name for name, info in infos.items() if info.builtin} == {
        *("controlnet", "img2img", "inpaint", "lora", "preprocessors", "previews"),
        *("prompt-weighting", "recipe", "safety", "schedulers", "sd", "sdxl", "textual-inversion", "txt2img"),
    }
    vignette = infos["vignette"]
    assert (vignette.version, vignette.hooks, vignette.builtin) == ("0.1.0", ("darkroom_finishers",), False)
    assert vignette.parameters is not None
    assert vignette.parameters.model_json_schema()["properties"]["strength"]["maximum"] == 1
    assert infos["txt2img"].version == VERSION
    assert infos["schedulers"].hooks == ("darkroom_schedulers",)


def test_owners_are_known() -> None:
    plugins = load_plugins()
    assert plugins.owner("finishers", "vignette") == "vignette"
    assert plugins.owner("tasks", "txt2img") == "txt2img"
    assert set(plugins.extensions) == {"vignette"}


def test_the_example_is_small() -> None:
    """A finisher with a parameter in ten lines or so: that is what a plugin costs its author."""
    example = Path(__file__).parents[2] / "plugins/examples/vignette/darkroom_vignette.py"
    lines = [line for line in example.read_text().splitlines() if line.strip()]
    assert len(lines) <= 25


def test_a_blocked_plugin_is_absent() -> None:
    plugins = load_plugins(blocked=["vignette", "txt2img"])
    assert {"vignette", "txt2img"}.isdisjoint(info.name for info in plugins.infos)
    assert set(plugins.tasks) == {"img2img", "inpaint", "outpaint"}
    assert plugins.extensions == {}


def test_a_blocked_extra_plugin_is_absent_and_not_asked() -> None:
    def never() -> Any:
        raise AssertionError("a blocked plugin was asked")

    plugins = load_plugins(blocked=["extra"], extra={"extra": plugin(tasks=never)})
    assert "extra" not in [info.name for info in plugins.infos]


@pytest.mark.parametrize("version", [None, 0, 2, "1"])
def test_another_version_of_the_contract_is_refused(version: Any) -> None:
    message = refusal({"old": plugin(version, tasks=list)})
    assert "'old'" in message
    assert str(version) in message


def test_a_misspelled_hook_is_refused() -> None:
    assert "darkroom_finisher" in refusal({"typo": plugin(finisher=list)})


def test_a_hook_with_other_arguments_is_refused() -> None:
    class Wrong:
        darkroom_api_version = 1

        @hookimpl
        def darkroom_tasks(self, nonsense: int) -> list[Task]:
            return []

    assert "'wrong'" in refusal({"wrong": Wrong()})


def boom() -> Any:
    raise RuntimeError("boom")


@pytest.mark.parametrize("answer", [boom, lambda: None, lambda: [object()]], ids=["raises", "gives None", "nameless"])
def test_a_hook_that_fails_is_told_by_its_plugin(answer: Callable[[], Any]) -> None:
    assert "'broken'" in refusal({"broken": plugin(tasks=answer)})


def entry_point(name: str, value: str = "tests.noise_family") -> EntryPoint:
    return EntryPoint(name=name, value=value, group="darkroom.plugins")


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes these the installed plugins."""

    def install(*entries: EntryPoint) -> None:
        monkeypatch.setattr(manager, "entry_points", lambda group: list(entries))

    return install


def test_a_plugin_that_does_not_load_is_named(install: Callable[..., None]) -> None:
    install(entry_point("ghost", "no_such_module_anywhere"))
    assert "'ghost'" in refusal()


def test_a_plugin_that_does_not_load_can_be_blocked(install: Callable[..., None]) -> None:
    install(entry_point("ghost", "no_such_module_anywhere"))
    assert "ghost" not in [info.name for info in load_plugins(blocked=["ghost"]).infos]


def test_two_distributions_with_one_plugin_name_are_refused(install: Callable[..., None]) -> None:
    install(entry_point("twin", "tests.noise_family"), entry_point("twin", "darkroom_vignette"))
    assert "twin" in refusal()


def test_a_plugin_cannot_take_the_name_of_a_builtin(install: Callable[..., None]) -> None:
    install(entry_point("recipe"))
    assert "'recipe'" in refusal()


# ------------------------------------------------------------------------------------------------ names claimed twice


class SomeTask(Task):
    name = "some"
    rpcs = ("Generate",)

    def begin(self, sample: Any) -> None: ...


class SomeConditioner(Conditioner):
    name = "some"

    def wants(self, request: Any) -> bool:
        return False


class SomeAdapter(Adapter):
    name = "some"

    def wants(self, request: Any) -> bool:
        return False

    def applied(self, model: Any, evaluation: Any) -> Any: ...


class SomeFinisher(Finisher):
    name = "some"

    def finish(self, picture: Any, request: Any, parameters: Any) -> Any:
        return picture


SOME: dict[str, Callable[[], Any]] = {
    "families": lambda: [Noise],
    "schedulers": lambda: [SchedulerEntry(name="some", scheduler=object)],
    "preprocessors": lambda: [Preprocessor(name="some", run=lambda pixels, parameters: pixels)],
    "preview_decoders": lambda: [PreviewDecoder(name="some", build=lambda model: model.decode)],
    "tasks": lambda: [SomeTask()],
    "conditioners": lambda: [SomeConditioner()],
    "adapters": lambda: [SomeAdapter()],
    "finishers": lambda: [SomeFinisher()],
}


@pytest.mark.parametrize("kind", KINDS)
def test_two_plugins_that_claim_one_name_are_refused(kind: str) -> None:
    assert load_plugins(extra={"one": plugin(**{kind: SOME[kind]})})
    message = refusal({"one": plugin(**{kind: SOME[kind]}), "two": plugin(**{kind: SOME[kind]})})
    assert all(word in message for word in ("'one'", "'two'", kind))


def test_one_name_may_be_used_among_several_kinds() -> None:
    plugins = load_plugins(extra={"one": plugin(**SOME)})
    assert plugins.tasks["some"]
    assert plugins.finishers["some"]


@pytest.mark.parametrize(
    ("name", "aliases"), [("euler", ()), ("euler_a", ()), ("mine", ("ddim",)), ("mine", ("x", "dpm++"))]
)
def test_a_scheduler_alias_counts_as_a_name(name: str, aliases: tuple[str, ...]) -> None:
    entry = SchedulerEntry(name=name, scheduler=object, aliases=aliases)
    message = refusal({"mine": plugin(schedulers=lambda: [entry])})
    assert "'mine'" in message
    assert "'schedulers'" in message


def test_a_plugin_has_one_class_of_parameters() -> None:
    def finisher(title: str) -> Finisher:
        return type(title, (SomeFinisher,), {"name": title, "Parameters": type(title, (BaseModel,), {})})()

    assert "'two'" in refusal({"two": plugin(finishers=lambda: [finisher("A"), finisher("B")])})


# --------------------------------------------------------------------------------------------------- the hooks' own law


def test_the_hooks_are_few_typed_and_documented() -> None:
    assert set(HOOKS) == {f"darkroom_{kind}" for kind in KINDS}
    assert len(HOOKS) <= 8
    names = {name: getattr(contract, name) for name in vars(contract)}
    for name, hook in HOOKS.items():
        assert len(inspect.getdoc(hook) or "") > 20, name
        hints = typing.get_type_hints(hook, localns=names)
        assert set(hints) == {*inspect.signature(hook).parameters, "return"}, name


def test_the_contract_is_documented() -> None:
    for name, each in vars(contract).items():
        if inspect.isclass(each) and each.__module__ == contract.__name__:
            assert inspect.getdoc(each), name
            for method, function in vars(each).items():
                if inspect.isfunction(function) and not method.startswith("_"):
                    assert inspect.getdoc(function), f"{name}.{method}"


# ------------------------------------------------------------------------ a plugin of all eight hooks, in a real server


class AddOutput(SchedulerMixin, ConfigMixin):
    """Adds the model's output to the latents: what each part of the plugin gave can be read off the picture."""

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(self, times: float = 1.0) -> None:
        self.timesteps = torch.empty(0)

    def set_timesteps(self, count: int) -> None:
        self.timesteps = torch.arange(count, 0, -1)

    def scale_model_input(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return latents

    def step(self, output: torch.Tensor, timestep: torch.Tensor, latents: torch.Tensor) -> Any:
        result = latents + self.config.times * output
        return types.SimpleNamespace(prev_sample=result, pred_original_sample=result)


class Flat(Noise):
    """Predicts its `gain` and what conditioners add; decodes to a plain grey."""

    name = "flat"
    scheduler_config: dict[str, Any] = {"_class_name": "AddOutput"}  # noqa: RUF012
    gain = 0.0

    @classmethod
    def detect(cls, model_index: Any) -> bool:
        return model_index["_class_name"] == "Flat"

    def encode_prompts(self, keys: Any) -> list[PromptEmbedding]:
        return [PromptEmbedding(torch.zeros(1, 1, 1), warnings=("a warning of the family",)) for _ in keys]

    def predict(self, evaluation: Any) -> torch.Tensor:
        output = torch.full_like(evaluation.latents, self.gain)
        return output + evaluation.arguments.get("added", 0)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.repeat_interleave(8, -1).repeat_interleave(8, -2).expand(-1, 3, -1, -1)


@dataclass
class Log:
    """What was called, in order; and a gate at which the engine can be held."""

    calls: list[str]
    gate: threading.Event

    def __call__(self, call: str) -> None:
        if not self.calls or self.calls[-1] != call:
            self.calls.append(call)


class FlatTask(Task):
    name = "flat"
    description = "Begins with grey."
    rpcs = ("Generate",)

    def __init__(self, log: Log) -> None:
        self.log = log

    def first_evaluation(self, request: Any, timesteps: torch.Tensor, order: int) -> int:
        self.log("Task.first_evaluation")
        return 1

    def begin(self, sample: Any) -> None:
        self.log("Task.begin")
        assert self.log.gate.wait(60)
        sample.latents = torch.full((1, *sample.model.latent_shape(64, 64)), -0.5)

    def after_evaluation(self, sample: Any, latents: torch.Tensor) -> torch.Tensor:
        self.log("Task.after_evaluation")
        return latents + 1 / 64


class FlatConditioner(Conditioner):
    name = "flat"

    def __init__(self, log: Log) -> None:
        self.log = log

    def wants(self, request: Any) -> bool:
        return "brighter" in request.prompt

    def begin(self, sample: Any) -> None:
        self.log("Conditioner.begin")
        sample.state[self.name] = 1 / 16

    def condition(self, evaluation: Any) -> None:
        self.log("Conditioner.condition")
        added = [row.sample.state.get(self.name, 0.0) for row in evaluation.rows]
        evaluation.arguments["added"] = torch.tensor(added)[:, None, None, None]


class Contracted(Conditioner):
    """Takes part by a word in the prompt, with a batch contract."""

    def __init__(self, contract: BatchContract) -> None:
        self.name = self.word = contract.value
        self.contract = contract

    def wants(self, request: Any) -> bool:
        return self.word in request.prompt

    def key(self, request: Any) -> str:
        return request.prompt

    def condition(self, evaluation: Any) -> None: ...


class FlatAdapter(Adapter):
    name = "flat"

    def __init__(self, log: Log) -> None:
        self.log = log

    def wants(self, request: Any) -> bool:
        return "stronger" in request.prompt

    @contextlib.contextmanager
    def applied(self, model: Any, evaluation: Any) -> Iterator[None]:
        self.log("Adapter.applied")
        model.gain = 1 / 8
        yield
        model.gain = 0.0


class FlatFinisher(Finisher):
    name = "flat"

    class Parameters(BaseModel, extra="forbid"):
        lift: int

    def __init__(self, log: Log) -> None:
        self.log = log

    def finish(self, picture: Any, request: Any, parameters: Any) -> Any:
        self.log("Finisher.finish")
        picture.pixels = picture.pixels + np.uint8(parameters.lift)
        picture.metadata["lifted"] = parameters.lift
        return picture


class AllHooks:
    """Implements every hook there is."""

    darkroom_api_version = 1

    def __init__(self) -> None:
        self.log = Log([], threading.Event())
        self.log.gate.set()

    @hookimpl
    def darkroom_families(self) -> Any:
        return [Flat]

    @hookimpl
    def darkroom_schedulers(self) -> Any:
        return [
            SchedulerEntry(name="add-output", scheduler=AddOutput, aliases=("add",)),
            SchedulerEntry(name="add-twice", scheduler=AddOutput, options={"times": 2.0}, max_steps=5),
        ]

    @hookimpl
    def darkroom_preprocessors(self) -> Any:
        return [Preprocessor(name="negative", run=lambda pixels, parameters: 255 - pixels)]

    @hookimpl
    def darkroom_preview_decoders(self) -> Any:
        def build(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
            return lambda latents: -latents.expand(-1, 3, -1, -1)

        return [PreviewDecoder(name="latent-rgb", build=build)]

    @hookimpl
    def darkroom_tasks(self) -> Any:
        return [FlatTask(self.log)]

    @hookimpl
    def darkroom_conditioners(self) -> Any:
        return [FlatConditioner(self.log), Contracted(BatchContract.KEYED), Contracted(BatchContract.SOLO)]

    @hookimpl
    def darkroom_adapters(self) -> Any:
        return [FlatAdapter(self.log)]

    @hookimpl
    def darkroom_finishers(self) -> Any:
        return [FlatFinisher(self.log)]


class OwnPreviews(RunningServer):
    """A server without the built-in preview decoders, whose names another plugin takes."""

    async def _start(self) -> Any:
        from darkroom_server.app import App
        from darkroom_server.settings import Settings

        app = App(Settings(**self._settings), load_plugins(blocked=["previews"], extra=self._plugins))
        await app.start()
        return app


@pytest.fixture(scope="module")
def all_hooks() -> AllHooks:
    return AllHooks()


@pytest.fixture(scope="module")
def server(all_hooks: AllHooks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = save_noise(tmp_path_factory.mktemp("models") / "flat")
    (folder / "model_index.json").write_text('{"_class_name": "Flat"}')
    with OwnPreviews(plugins={"all": all_hooks}, models=[{"name": "flat", "path": folder}]) as running:
        yield running


PNG = pb.PreviewOptions(format=pb.IMAGE_FORMAT_PNG)


def grey(value: float) -> int:
    return round((value * 0.5 + 0.5) * 255)


def test_the_plugin_implements_every_hook(all_hooks: AllHooks) -> None:
    infos = {info.name: info for info in load_plugins(blocked=["previews"], extra={"all": all_hooks}).infos}
    assert set(infos["all"].hooks) == set(HOOKS)


def test_each_hook_has_its_effect(server: RunningServer, all_hooks: AllHooks) -> None:
    """Four steps, of which the task leaves out the first: each of three adds 1/64 by the task, 1/16 by the conditioner
    and 1/8 by the adapter to -1/2; the preview decoder shows the negative, the finisher lifts by 7 levels."""
    all_hooks.log.calls.clear()
    request = {"task": "flat", "prompt": "brighter stronger", "num_inference_steps": 4, "preview": PNG}
    stream = server.generate(**request, extensions={"all": {"lift": 7}})
    assert np.unique(stream.pixels) == [grey(-0.5 + 3 * (1 / 64 + 1 / 16 + 1 / 8)) + 7]
    assert stream.of("image")[0].metadata["lifted"] == 7
    assert stream.of("accepted")[0].step_count == 3
    assert stream.of("accepted")[0].parameters.scheduler.name == "add-output"  # that of the family's configuration
    assert list(stream.of("completed")[0].warnings) == ["a warning of the family"]
    assert [preview.decoder for preview in stream.of("preview")][-1] == pb.PREVIEW_MODE_LATENT_RGB
    evaluation = ["Conditioner.condition", "Adapter.applied", "Task.after_evaluation"]
    assert all_hooks.log.calls == [
        "Task.first_evaluation",
        "Conditioner.begin",
        "Task.begin",
        *evaluation * 3,
        "Finisher.finish",
    ]


def test_previews_come_from_the_plugin(server: RunningServer) -> None:
    stream = server.generate(task="flat", prompt="stronger", num_inference_steps=2, preview=PNG)
    (preview,) = stream.of("preview")
    pixels = np.asarray(Image.open(io.BytesIO(preview.image_bytes)).convert("RGB"))
    assert np.unique(pixels) == [grey(0.5 - 1 / 8)]  # the scheduler's estimate, which knows nothing of the task


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prompt": "brighter"}, -0.5 + 3 * (1 / 64 + 1 / 16)),
        ({"prompt": "stronger"}, -0.5 + 3 * (1 / 64 + 1 / 8)),
        ({"prompt": "", "scheduler": "add"}, -0.5 + 3 / 64),
        ({"prompt": "stronger", "scheduler": "add-twice"}, -0.5 + 3 * (1 / 64 + 2 / 8)),
    ],
)
def test_who_is_not_wanted_has_no_effect(server: RunningServer, changes: dict[str, Any], expected: float) -> None:
    """An adapter restores the model, a conditioner touches its own rows, a finisher without its extension is silent."""
    stream = server.generate(task="flat", num_inference_steps=4, **changes)
    assert np.unique(stream.pixels) == [grey(expected)]


def test_rows_of_one_batch_are_conditioned_each_by_its_own(server: RunningServer, all_hooks: AllHooks) -> None:
    plain, bright = together(server, all_hooks, "plain", "brighter")
    assert max(step.batch_rows for step in plain.of("step")) == 2
    assert np.unique(plain.pixels) == [grey(-0.5 + 3 / 64)]
    assert np.unique(bright.pixels) == [grey(-0.5 + 3 * (1 / 64 + 1 / 16))]


@pytest.mark.parametrize(
    ("first", "second", "rows"),
    [
        ("plain", "plain", 2),
        ("keyed a", "keyed a", 2),
        ("keyed a", "keyed b", 1),
        ("keyed a", "plain", 1),
        ("solo", "solo", 1),
        ("solo", "plain", 1),
    ],
)
def test_batch_contracts_are_kept(
    server: RunningServer, all_hooks: AllHooks, first: str, second: str, rows: int
) -> None:
    streams = together(server, all_hooks, first, second)
    assert max(step.batch_rows for stream in streams for step in stream.of("step")) == rows


def together(server: RunningServer, all_hooks: AllHooks, *prompts: str) -> list[Any]:
    """Jobs of which none is stepped before all have come in."""
    all_hooks.log.gate.clear()
    requests = [generate_request(task="flat", prompt=prompt, num_inference_steps=4) for prompt in prompts]
    streams = [server.start(request) for request in requests]
    for stream in streams:
        stream.read_until("accepted")
    all_hooks.log.gate.set()
    return [stream.read() for stream in streams]


def test_preprocessors_are_in_the_registry(server: RunningServer, all_hooks: AllHooks) -> None:
    plugins = load_plugins(blocked=["previews"], extra={"all": all_hooks})
    assert plugins.owner("preprocessors", "negative") == "all"
    assert plugins.preprocessors["negative"].run(np.zeros((1, 1, 3), np.uint8), None).max() == 255
