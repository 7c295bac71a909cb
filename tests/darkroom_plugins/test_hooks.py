"""The hooks are few and documented, and each of the eight does in a real server what its docstring says."""

import contextlib
import inspect
import io
import threading
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from PIL import Image
from pydantic import BaseModel

from darkroom.v1 import parameters_pb2 as pb
from darkroom_plugins import contract, hookimpl, hookspecs
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
from darkroom_plugins.manager import KINDS, load_plugins
from darkroom_plugins.sample import PromptEmbedding
from tests.noise_family import Noise, save_noise
from tests.support import RunningServer, generate_request

HOOKS = {name: each for name, each in vars(hookspecs).items() if name.startswith("darkroom_")}


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
        return output + evaluation.residuals[0] if evaluation.residuals else output

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

    def first_evaluation(self, request: Any, timesteps: torch.Tensor, order: int, parameters: Any) -> int:
        self.log("Task.first_evaluation")
        return 1

    def begin(self, sample: Any, parameters: Any) -> None:
        self.log("Task.begin")
        assert self.log.gate.wait(60)
        sample.latents = torch.full((1, *sample.model.latent_shape(64, 64)), -0.5)

    def after_evaluation(self, sample: Any, latents: torch.Tensor, parameters: Any) -> torch.Tensor:
        self.log("Task.after_evaluation")
        return latents + 1 / 64


class FlatConditioner(Conditioner):
    name = "flat"

    def __init__(self, log: Log) -> None:
        self.log = log

    def wants(self, request: Any, parameters: Any) -> bool:
        return "brighter" in request.prompt

    def begin(self, sample: Any, parameters: Any) -> None:
        self.log("Conditioner.begin")
        sample.state[self.name] = 1 / 16

    def condition(self, evaluation: Any, parameters: Any) -> None:
        self.log("Conditioner.condition")
        added = [row.sample.state[self.name] for row in evaluation.rows]
        evaluation.add_residuals([torch.tensor(added)[:, None, None, None]])


class Contracted(Conditioner):
    """Takes part by a word in the prompt, with a batch contract."""

    def __init__(self, contract: BatchContract) -> None:
        self.name = self.word = contract.value
        self.contract = contract

    def wants(self, request: Any, parameters: Any) -> bool:
        return self.word in request.prompt

    def key(self, request: Any, parameters: Any) -> str:
        return request.prompt

    def condition(self, evaluation: Any, parameters: Any) -> None: ...


class FlatAdapter(Adapter):
    name = "flat"

    def __init__(self, log: Log) -> None:
        self.log = log

    def wants(self, request: Any, parameters: Any) -> bool:
        return "stronger" in request.prompt

    @contextlib.contextmanager
    def applied(self, model: Any, evaluation: Any, parameters: Any) -> Iterator[None]:
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
        from darkroom_server.config.settings import Settings

        app = await App.open(Settings(**self._settings), load_plugins(blocked=["previews"], extra=self._plugins))
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
