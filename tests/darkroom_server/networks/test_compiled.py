"""A compiled denoiser: compiled beside the engine, never by it, and left alone where it does not apply."""

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from darkroom.v1 import catalog_service_pb2 as catalog_pb
from darkroom.v1.parameters_pb2 import ControlSpec, LoraSpec
from darkroom_plugins.builtin.families.unet import UNetFamily
from darkroom_plugins.builtin.tasks.txt2img import Txt2Img
from darkroom_server.app import run
from darkroom_server.config.settings import ModelSettings, Settings
from darkroom_server.device.threads import ENGINE_NICENESS, NICENESS
from darkroom_server.networks.compiled import compiled, eagerly, is_compiling
from tests.support import RunningServer, generate_request, png
from tests.tiny import save_controlnet, save_lora

REQUEST = {"prompt": "x", "seed": 3, "num_inference_steps": 4, "guidance_scale": 4.0}


class Backend:
    """Stands for Inductor, whose machine code takes minutes: what it is given runs as it is."""

    def __init__(self) -> None:
        self.compiled_by: list[str] = []
        self.run_by: list[str] = []
        self.niceness: set[int] = set()  # of the compiler
        self.error: Exception | None = None  # of each compilation
        self.run_error: Exception | None = None  # of what was compiled
        self.began, self.go = threading.Event(), threading.Event()  # a compilation, and until when it takes
        self.go.set()

    def __call__(self, graph: Any, example: Any) -> Callable[..., Any]:
        self.compiled_by.append(threading.current_thread().name)
        self.began.set()
        if self.compiled_by[-1] == "compiler":
            self.niceness.add(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
            self.go.wait(100)
        if self.error is not None:
            raise self.error

        def run(*args: Any) -> Any:
            if self.run_error is not None:
                raise self.run_error
            self.run_by.append(threading.current_thread().name)
            return graph.forward(*args)

        return run


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    settle()
    torch.compiler.reset()  # what other tests compiled counts towards Dynamo's limit
    backend, compile_ = Backend(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_(function, backend=backend, **options))
    monkeypatch.setattr("darkroom_server.networks.compiled.compile_elsewhere", lambda *_: None)
    yield backend
    backend.go.set()
    settle()
    torch.compiler.reset()


def settle() -> None:
    """Wait for compilers."""
    while is_compiling():
        time.sleep(0.01)


@contextlib.contextmanager
def serving(backend: Backend, tiny_model: Path, **more: Any) -> Iterator[RunningServer]:
    """With the model `plain` and `compiled`, and one number of threads, for which code is compiled; the backend forgets
    what the check at the start compiled."""
    models = [{"name": "compiled", "path": tiny_model, "compile": True}, {"name": "plain", "path": tiny_model}]
    with RunningServer(models=models, threads=1, **more) as server:
        backend.compiled_by.clear()
        backend.began.clear()
        backend.run_by.clear()
        yield server


def test_no_job_waits_for_the_compiler(backend: Backend, tiny_model: Path) -> None:
    with serving(backend, tiny_model) as server:
        server.generate(**REQUEST, model="plain")
        backend.go.clear()
        first = server.generate(**REQUEST).pixels
        assert not backend.run_by  # it was made while the compiler was at work
        assert backend.began.wait(100)
        assert backend.compiled_by == ["compiler"]
        backend.go.set()
        engine = server.run(server.app.engine.call(threading.get_native_id))
        own = os.getpriority(os.PRIO_PROCESS, os.getpid())
        assert os.getpriority(os.PRIO_PROCESS, engine) == own + ENGINE_NICENESS
        assert backend.niceness == {own + NICENESS}
        settle()
        second, plain = server.generate(**REQUEST).pixels, server.generate(**REQUEST, model="plain").pixels
        assert "engine" in backend.run_by
        assert np.array_equal(first, plain)
        assert np.abs(second - plain).max() <= 1


@pytest.mark.slow
def test_batches_of_other_sizes_are_not_compiled_by_the_engine(
    backend: Backend, tiny_model: Path, tmp_path: Path
) -> None:
    net = save_controlnet(tmp_path / "net", tiny_model, seed=1)
    picture = png(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    kinds: list[Callable[[str], Any]] = [
        lambda model: generate_request(**REQUEST | {"guidance_scale": 1.0}, model=model),
        lambda model: generate_request(
            **REQUEST,
            controls=[ControlSpec(model="net", image=picture)],
            num_images=3,
            width=48,
            height=32,
            model=model,
        ),
        lambda model: generate_request(**REQUEST, cache_interval=2, model=model),
    ]
    with serving(backend, tiny_model, controlnets=[{"name": "net", "path": net}]) as server:
        for request in kinds:
            expected = server.start(request("plain")).read().pixels
            for _ in range(2):
                assert np.abs(server.start(request("compiled")).read().pixels - expected).max() <= 1
                settle()
        before = len(backend.run_by)
        for request in kinds:
            server.start(request("compiled")).read()
        assert "engine" in backend.run_by[before:]
    assert set(backend.compiled_by) == {"compiler"}


def test_rows_without_loras_run_compiled_beside_others(backend: Backend, tiny_model: Path, tmp_path: Path) -> None:
    lora = save_lora(tmp_path / "lora.safetensors", tiny_model, 2)
    adapted = {"loras": [LoraSpec(name="lora", weight=0.8)]}
    with serving(backend, tiny_model, loras=[{"name": "lora", "path": lora}]) as server:
        expected = [server.generate(**REQUEST, **more, model="plain").pixels for more in ({}, adapted)]
        server.generate(**REQUEST)
        settle()
        backend.run_by.clear()
        streams = server.together([generate_request(**REQUEST, **more) for more in ({}, adapted)])
        made = [stream.read() for stream in streams]
        assert backend.run_by == ["engine"] * 5  # PNDM's evaluations of four steps
    assert {step.batch_rows for each in made for step in each.of("step")} == {4}
    for each, pixels in zip(made, expected, strict=True):
        assert np.abs(each.pixels - pixels).max() <= 1


@pytest.mark.slow
def test_loading_waits_for_the_compiler_where_that_is_asked_for(backend: Backend, tiny_model: Path) -> None:
    models, limits = [{"name": "tiny", "path": tiny_model, "compile": "load"}], {"max_batch_rows": 4}
    with RunningServer(models=models, limits=limits, threads=1) as server:
        assert "compiler" in backend.compiled_by
        compiled_by = len(backend.compiled_by)
        for count in (1, 2, 2):
            backend.run_by.clear()
            server.generate(**REQUEST, num_images=count)
            assert backend.run_by == ["engine"] * 5  # PNDM's evaluations of four steps
        assert len(backend.compiled_by) == compiled_by


@pytest.mark.slow
def test_a_server_that_waits_for_the_compiler_stops_when_it_is_told_to(backend: Backend, tiny_model: Path) -> None:
    def tell() -> None:
        while not is_compiling():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    backend.go.clear()
    threading.Thread(target=tell).start()
    settings = Settings(listen="127.0.0.1:0", models=[ModelSettings(name="tiny", path=tiny_model, compile="load")])
    assert asyncio.run(run(settings)) == 0
    assert is_compiling()


def test_a_model_that_cannot_warm_up_is_loaded(
    backend: Backend, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Txt2Img, "incompatibility", lambda *_: "it wants a picture to begin with")
    with RunningServer(models=[{"name": "tiny", "path": tiny_model, "compile": "load"}]) as server:
        (listed,) = server.catalog.ListModels(catalog_pb.ListModelsRequest()).models
    (warning,) = [record.getMessage() for record in caplog.records if "no warm-up" in record.message]
    assert "wants a picture" in warning
    assert listed.residency == catalog_pb.RESIDENCY_RESIDENT


def test_a_model_whose_warm_up_fails_is_loaded(
    backend: Backend, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> Any:
        raise ValueError("not now")

    with monkeypatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(UNetFamily, "predict", fail)
        models = [{"name": "tiny", "path": tiny_model, "compile": "load"}]
        server = stack.enter_context(RunningServer(models=models))
        assert any("no warm-up" in record.message for record in caplog.records)
        (listed,) = server.catalog.ListModels(catalog_pb.ListModelsRequest()).models
        assert listed.residency == catalog_pb.RESIDENCY_RESIDENT


def test_engines_of_a_process_run_eagerly_apart(backend: Backend) -> None:
    """Of two, the first to begin ends first."""
    network, rows = nn.Sequential(nn.Linear(4, 4)).requires_grad_(False), torch.ones(3, 4)
    network.forward = compiled(network, background=False)  # type: ignore[method-assign]
    begun, ended = threading.Event(), threading.Event()

    def other() -> None:
        with eagerly():
            begun.set()
            assert ended.wait(100)

    with ThreadPoolExecutor(1) as pool:
        with eagerly():
            running = pool.submit(other)
            assert begun.wait(100)
            network(rows)
            assert not backend.compiled_by
        ended.set()
        running.result()
    network(rows)
    assert backend.compiled_by


@torch.inference_mode()
def test_other_numbers_of_threads_are_not_compiled_for_by_the_engine(backend: Backend) -> None:
    network, rows = nn.Sequential(nn.Linear(4, 4)).requires_grad_(False), torch.ones(3, 4)
    network.forward = compiled(network, background=True)  # type: ignore[method-assign]
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            network(rows)
            settle()
            network(rows)
    finally:
        torch.set_num_threads(before)
    assert backend.compiled_by == ["compiler"] * 2
    assert backend.run_by.count(threading.current_thread().name) == 4  # the last of each, and the third's first


def test_a_network_that_does_not_compile_runs_as_it_is(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    network, rows = nn.Sequential(nn.Linear(4, 4)).requires_grad_(False), torch.ones(3, 4)
    expected = network(rows)
    network.forward = compiled(network, background=True, advice="leave it")  # type: ignore[method-assign]
    backend.error = RuntimeError("no compiler here")
    for _ in range(2):
        assert torch.equal(network(rows), expected)
        settle()
    assert backend.compiled_by == ["compiler"]
    (warning,) = [record.message for record in caplog.records if "does not compile" in record.message]
    assert warning.endswith("; leave it")


@torch.inference_mode()
def test_the_compiled_code_of_many_networks_is_kept(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """All networks of a class share the code that the compiler counts: its own limit is eight."""
    networks = [nn.Sequential(nn.Linear(4, 4 + width)).requires_grad_(False) for width in range(12)]
    for network in networks:
        network.forward = compiled(network, background=False)  # type: ignore[method-assign]
    rows = torch.ones(3, 4)
    for _ in range(2):
        for network in networks:
            network(rows)
    assert len(backend.run_by) == 12 * 3  # once more by the compiler
    assert not [record for record in caplog.records if "does not compile" in record.message]


@torch.inference_mode()
def test_beyond_the_limit_a_network_runs_eagerly_and_says_so(
    backend: Backend, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("darkroom_server.networks.dynamo.MAX_VERSIONS", 2)
    networks = [nn.Sequential(nn.Linear(4, 4 + width)).requires_grad_(False) for width in range(3)]
    rows = torch.ones(3, 4)
    expected = networks[2](rows)
    for network in networks:
        network.forward = compiled(network, background=False)  # type: ignore[method-assign]
    for network in networks[:2]:
        network(rows)
    backend.run_by.clear()
    for _ in range(2):
        assert torch.equal(networks[2](rows), expected)
    assert not backend.run_by
    assert len([record for record in caplog.records if "does not compile" in record.message]) == 1
    for network in networks[:2]:
        network(rows)
    assert len(backend.run_by) == 2


def test_a_shape_that_does_not_compile_does_not_keep_others_from_it(backend: Backend) -> None:
    network, rows = nn.Sequential(nn.Linear(4, 4)).requires_grad_(False), torch.ones(3, 4)
    network.forward = compiled(network, background=False)  # type: ignore[method-assign]
    backend.error = RuntimeError("not in this shape")
    network(rows)
    backend.error = None
    network(torch.ones(1, 4))
    assert len(backend.run_by) == 2
    network(rows)
    assert len(backend.run_by) == 2


def test_a_network_of_which_no_shape_compiles_is_left_alone(backend: Backend) -> None:
    network = nn.Sequential(nn.Linear(4, 4)).requires_grad_(False)
    network.forward = compiled(network, background=False)  # type: ignore[method-assign]
    backend.error = RuntimeError("no compiler here")
    for rows in range(1, 9):
        network(torch.ones(rows, 4))
    assert len(backend.compiled_by) == 3


def test_it_is_tried_again_when_there_was_no_room(backend: Backend) -> None:
    network = nn.Sequential(nn.Linear(4, 4)).requires_grad_(False)
    network.forward = compiled(network, background=False)  # type: ignore[method-assign]
    backend.run_error = torch.OutOfMemoryError("no")
    rows = torch.ones(3, 4)
    expected = network(rows)
    assert not backend.run_by
    backend.run_error = None
    assert torch.equal(network(rows), expected)
    assert backend.run_by
