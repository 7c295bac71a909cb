"""A plugin that misbehaves fails its own job, by name; the pictures of the strangers in its batches stay what they are.

Bytes depend on the number of rows in a batch, in classes (1, 2 to 3, 4 to 12, …). Three strangers have six rows, with
the plugin's job eight: one class, so that their pictures are compared to the last level.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import grpc
import numpy as np
import pytest
import torch
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from pydantic import BaseModel

from darkroom_plugins import Adapter, Conditioner, Finisher, Preprocessor, Task, hookimpl
from darkroom_plugins.builtin.tasks.txt2img import Txt2Img
from tests.support import RunningServer, Stream, generate_request, refused, settle

STEPS, FAILS_AT = 6, 3
STRANGERS = 3


class Gate:
    """Holds the engine before the first step, until all jobs of a test have come in."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()


class Meek(Txt2Img):
    """Misbehaves as a task where the prompt says so, and waits for the gate."""

    name = "meek"

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def begin(self, sample: Any, parameters: Any) -> None:
        assert self.gate.open.wait(60)
        super().begin(sample, parameters)
        match sample.request.prompt:
            case "task: leaves":
                raise SystemExit(1)
            case "task: interrupts":
                raise KeyboardInterrupt
            case "task: smaller latents":
                sample.latents = sample.latents[..., 1:]
            case "task: NaN":
                sample.latents = sample.latents * float("nan")

    def after_evaluation(self, sample: Any, latents: torch.Tensor, parameters: Any) -> torch.Tensor:
        if sample.request.prompt == "task: later NaN" and sample.evaluation == FAILS_AT:
            return latents * float("nan")
        return latents


def halve(evaluation: Any) -> None:
    evaluation.prompts = evaluation.prompts[:, ::2]


def poison(evaluation: Any) -> None:
    evaluation.prompts = evaluation.prompts * float("nan")


def write_prompts(evaluation: Any) -> None:
    evaluation.prompts.fill_(9)


def write_rows(evaluation: Any) -> None:
    for row in evaluation.rows:
        row.prompt.hidden.fill_(9)


def leave(evaluation: Any) -> None:
    raise SystemExit(1)


def interrupt(evaluation: Any) -> None:
    raise KeyboardInterrupt


def poison_residuals(evaluation: Any) -> None:
    evaluation.add_residuals([torch.full(shape, float("nan")) for shape in evaluation.residual_shapes])


CONDITIONS: dict[str, Callable[[Any], None]] = {
    "shortens the prompts": halve,
    "writes NaN": poison,
    "writes into prompts": write_prompts,
    "writes into rows": write_rows,
    "leaves": leave,
    "interrupts": interrupt,
    "NaN residuals": poison_residuals,
}


class Unruly(Conditioner):
    name = "unruly"

    def wants(self, request: Any, parameters: Any) -> bool:
        return request.prompt in CONDITIONS or request.prompt == "quiet"

    def condition(self, evaluation: Any, parameters: Any) -> None:
        for row in evaluation.rows:
            if row.sample.evaluation >= FAILS_AT and row.sample.request.prompt in CONDITIONS:
                CONDITIONS[row.sample.request.prompt](evaluation)


class Clumsy(Adapter):
    name = "clumsy"

    def wants(self, request: Any, parameters: Any) -> bool:
        return request.prompt.startswith("adapter:")

    @contextlib.contextmanager
    def applied(self, model: Any, evaluation: Any, parameters: Any) -> Iterator[None]:
        for row in evaluation.rows:
            if row.sample.evaluation >= FAILS_AT:
                match row.sample.request.prompt:
                    case "adapter: leaves":
                        raise SystemExit(1)
                    case "adapter: writes":
                        evaluation.prompts.fill_(9)
        yield


class Careless(Finisher):
    name = "careless"

    def finish(self, picture: Any, request: Any, parameters: Any) -> Any:
        if request.prompt == "finisher: leaves":
            raise SystemExit(1)
        if request.prompt == "finisher: floats":
            picture.pixels = picture.pixels.astype(float)
        return picture


def run(pixels: Any, options: Any) -> Any:
    raise SystemExit(1)


class Misbehaving:
    darkroom_api_version = 1

    def __init__(self) -> None:
        self.gate = Gate()

    @hookimpl
    def darkroom_tasks(self) -> list[Any]:
        return [Meek(self.gate)]

    @hookimpl
    def darkroom_conditioners(self) -> list[Any]:
        return [Unruly()]

    @hookimpl
    def darkroom_adapters(self) -> list[Any]:
        return [Clumsy()]

    @hookimpl
    def darkroom_finishers(self) -> list[Any]:
        return [Careless()]

    @hookimpl
    def darkroom_preprocessors(self) -> list[Any]:
        return [Preprocessor(name="leaving", run=run)]


@pytest.fixture(scope="module")
def plugin() -> Misbehaving:
    return Misbehaving()


@pytest.fixture(scope="module")
def server(plugin: Misbehaving, tiny_model: Path) -> Iterator[RunningServer]:
    with RunningServer(plugins={"bad": plugin}, models=[{"name": "tiny", "path": tiny_model}]) as running:
        yield running
        settle(running)


def request(prompt: str, seed: int = 1) -> Any:
    return generate_request(
        task="meek", prompt=prompt, num_inference_steps=STEPS, scheduler="ddim", seed=seed, guidance_scale=3
    )


def together(server: RunningServer, plugin: Misbehaving, prompt: str) -> tuple[Stream, list[np.ndarray]]:
    """A job of this prompt, read until it ends, however; and the pictures of the strangers that shared its batches."""
    plugin.gate.open.clear()
    try:
        streams = [server.start(request(f"stranger {n}", seed=n)) for n in range(STRANGERS)]
        bad = server.start(request(prompt, seed=9))
        for stream in [*streams, bad]:
            with contextlib.suppress(grpc.RpcError):
                stream.read_until("accepted")
    finally:
        plugin.gate.open.set()
    return bad, [stream.read().pixels for stream in streams]


@pytest.fixture(scope="module")
def alone(server: RunningServer, plugin: Misbehaving) -> list[np.ndarray]:
    """The strangers' pictures beside a job that does nothing."""
    bad, pictures = together(server, plugin, "quiet")
    bad.read()
    return pictures


LATE = [*CONDITIONS, "adapter: leaves", "adapter: writes", "task: later NaN"]


@pytest.mark.parametrize("prompt", LATE)
def test_strangers_keep_their_pictures(
    server: RunningServer, plugin: Misbehaving, alone: list[np.ndarray], prompt: str
) -> None:
    bad, pictures = together(server, plugin, prompt)
    failed = refused(bad.read)
    assert (failed.code, failed.reason) == (grpc.StatusCode.INTERNAL, "PLUGIN_FAILED")
    assert all(map(np.array_equal, pictures, alone))
    again, unharmed = together(server, plugin, "quiet")
    again.read()
    assert all(map(np.array_equal, unharmed, alone))  # nothing is left of it


@pytest.mark.parametrize("prompt", ["task: leaves", "task: interrupts", "task: smaller latents", "task: NaN"])
def test_who_never_began_changes_nothing(server: RunningServer, plugin: Misbehaving, prompt: str) -> None:
    bad, pictures = together(server, plugin, prompt)
    assert refused(bad.read).reason == "PLUGIN_FAILED"
    plugin.gate.open.clear()
    try:
        streams = [server.start(request(f"stranger {n}", seed=n)) for n in range(STRANGERS)]
        for stream in streams:
            stream.read_until("accepted")
    finally:
        plugin.gate.open.set()
    assert all(np.array_equal(stream.read().pixels, picture) for stream, picture in zip(streams, pictures, strict=True))


@pytest.mark.parametrize(
    ("prompt", "hook", "exception"),
    [
        ("leaves", "condition", "SystemExit: 1"),
        ("interrupts", "condition", "KeyboardInterrupt: "),
        ("shortens the prompts", "condition", "ValueError: its prompts are of shape"),
        ("writes into prompts", "condition", "ValueError: it wrote into a tensor"),
        ("task: leaves", "begin", "SystemExit: 1"),
        ("adapter: leaves", "applied", "SystemExit: 1"),
        ("finisher: leaves", "finish", "SystemExit: 1"),
        ("finisher: floats", "finish", "ValueError: its picture is not"),
    ],
)
def test_the_error_names_plugin_hook_and_exception(
    server: RunningServer, prompt: str, hook: str, exception: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.start(request(prompt)).read()
    status = rpc_status.from_call(caught.value)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.metadata["plugin"], info.metadata["hook"]) == ("bad", hook)
    assert info.metadata["exception"].startswith(exception)
    assert status.message == f"the plugin 'bad' failed in {hook}: {info.metadata['exception']}"


def test_a_preprocessor_that_leaves(server: RunningServer) -> None:
    from darkroom.v1 import image_service_pb2
    from tests.support import png

    image = png(np.zeros((8, 8, 3), np.uint8))
    call = image_service_pb2.PreprocessRequest(image=image, preprocessor="leaving")
    failed = refused(lambda: list(server.images.Preprocess(call)))
    assert "'bad' failed in run: SystemExit: 1" in failed.message


# --------------------------------------------------------------------------------------------------------- extensions


class Parametrised(Conditioner):
    name = "parametrised"

    class Parameters(BaseModel):
        amount: float

    def wants(self, request: Any, parameters: Any) -> bool:
        return parameters is not None and request.prompt != "not this time"

    def condition(self, evaluation: Any, parameters: Any) -> None:
        amounts = torch.tensor([each.amount for each in parameters])
        evaluation.prompts = evaluation.prompts + amounts.view(-1, 1, 1)


class ParametrisedTask(Txt2Img):
    name = "parametrised"
    Parameters = Parametrised.Parameters
    rpcs: ClassVar[tuple[str, ...]] = ("Generate",)

    def begin(self, sample: Any, parameters: Any) -> None:
        super().begin(sample, parameters)
        sample.latents = sample.latents * (parameters.amount if parameters else 1.0)


class Plugin:
    darkroom_api_version = 1

    def __init__(self, **hooks: list[Any]) -> None:
        self.hooks = hooks

    @hookimpl
    def darkroom_conditioners(self) -> list[Conditioner]:
        return self.hooks.get("conditioners", [])

    @hookimpl
    def darkroom_tasks(self) -> list[Task]:
        return self.hooks.get("tasks", [])


@pytest.fixture(scope="module")
def parametrised(tiny_model: Path) -> Iterator[RunningServer]:
    plugins = {"cond": Plugin(conditioners=[Parametrised()]), "task": Plugin(tasks=[ParametrisedTask()])}
    with RunningServer(plugins=plugins, models=[{"name": "tiny", "path": tiny_model}]) as running:
        yield running


BASE: dict[str, Any] = {"prompt": "x", "num_inference_steps": 3, "scheduler": "ddim", "seed": 5, "deterministic": True}


def test_conditioners_and_tasks_are_handed_their_parameters(parametrised: RunningServer) -> None:
    plain = parametrised.generate(**BASE).pixels
    nothing = parametrised.generate(**BASE, extensions={"cond": {"amount": 0}}).pixels
    some, more = (parametrised.generate(**BASE, extensions={"cond": {"amount": each}}).pixels for each in (1, 2))
    assert np.array_equal(plain, nothing)
    assert (some != plain).any()
    assert (some != more).any()
    task = {**BASE, "task": "parametrised"}
    assert np.array_equal(parametrised.generate(**task).pixels, plain)
    assert (parametrised.generate(**task, extensions={"task": {"amount": 0.5}}).pixels != plain).any()


@pytest.mark.parametrize(
    "fields",
    [
        {"extensions": {"task": {"amount": 1}}},  # the task is another
        {"prompt": "not this time", "extensions": {"cond": {"amount": 1}}},  # the conditioner does not want it
    ],
)
def test_an_extension_without_use_is_refused(parametrised: RunningServer, fields: dict[str, Any]) -> None:
    (name,) = fields["extensions"]
    failed = refused(lambda: parametrised.generate(**{**BASE, **fields}))
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert "uses nothing" in failed.violations[f"parameters.extensions[{name}]"]
