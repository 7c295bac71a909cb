"""However a stream ends, and wherever its job is then: one terminal status, and nothing of the job is left."""

import contextlib
import gc
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
import torch
from grpc import StatusCode
from pydantic import BaseModel

from darkroom.v1 import edits_pb2, parameters_pb2
from darkroom.v1 import image_service_pb2 as pb
from darkroom.v1.catalog_service_pb2 import UnloadModelRequest
from darkroom.v1.image_service_pb2_grpc import ImageServiceStub
from darkroom_plugins import hookimpl
from darkroom_plugins.contract import Conditioner, Inspector, Preprocessor
from darkroom_plugins.sample import Sample
from darkroom_server.jobs.job import Job
from darkroom_server.models.holdings import ModelHolding
from tests import noise_family
from tests.noise_family import save_noise
from tests.scraping import read, total
from tests.support import (
    RunningServer,
    Stream,
    alive,
    edit_request,
    generate_request,
    png,
    refused,
    settle,
    struct,
    wait_for,
)

PICTURE = png(np.full((32, 32, 3), 128, np.uint8))
FULL = edits_pb2.ImageToImage(strength=1.0)
KEEP = parameters_pb2.DISCONNECT_POLICY_KEEP
JOBS = ("Generate", "Edit", "Watch")
SECONDS = 1.0  # of a deadline
LONG = 400  # steps of a job that others wait for


class Gate:
    """Holds whoever comes to a place, until the test lets it go on."""

    def __init__(self) -> None:
        self.place = ""
        self.reached, self._open = threading.Event(), threading.Event()

    @contextlib.contextmanager
    def at(self, place: str) -> Iterator[None]:
        self.place = place
        self.reached.clear()
        self._open.clear()
        try:
            yield
        finally:
            self.place = ""
            self._open.set()

    def come(self, place: str) -> None:
        if place and place == self.place:
            self.reached.set()
            assert self._open.wait(60)


class Held(Conditioner):
    """Comes to `preview` and `midway`, and fails where the prompt says so."""

    name = "held"

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def wants(self, request: Any, parameters: Any) -> bool:
        return True

    def condition(self, evaluation: Any, parameters: Any) -> None:
        for row in evaluation.rows:
            if row.sample.evaluation == 3 and row.sample.request.prompt == "memory":
                raise torch.OutOfMemoryError
            if row.sample.evaluation == 3 and row.sample.request.prompt == "fault":
                raise RuntimeError
        furthest = max(row.sample.evaluation for row in evaluation.rows)
        self.gate.come({2: "preview", 4: "midway"}.get(furthest, ""))


class HeldInspector(Inspector):
    """Comes to `decode`."""

    name = "held-inspector"

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def wants(self, request: Any, parameters: Any) -> bool:
        return True

    def inspect(self, samples: Any, pictures: Any) -> Any:
        self.gate.come("decode")
        return [None] * len(samples)

    def finish(self, picture: Any, request: Any, parameters: Any) -> Any:
        return picture


class Wish(BaseModel):
    fault: bool = False


class Plugin:
    darkroom_api_version = 1

    def __init__(self) -> None:
        self.gate = Gate()

    @hookimpl
    def darkroom_conditioners(self) -> list[Any]:
        return [Held(self.gate)]

    @hookimpl
    def darkroom_finishers(self) -> list[Any]:
        return [HeldInspector(self.gate)]

    @hookimpl
    def darkroom_preprocessors(self) -> list[Any]:
        return [Preprocessor(name="held", run=self._run, Parameters=Wish)]

    def _run(self, pixels: Any, wish: Wish) -> Any:
        self.gate.come("preprocessor")
        if wish.fault:
            raise RuntimeError
        return pixels


class HeldServer(RunningServer):
    """A server that can be held at a place. `called` has the number of calls, by RPC."""

    def __init__(self, **settings: Any) -> None:
        plugin = Plugin()
        self.gate = plugin.gate
        self._numbers = iter(range(10**6))
        self.called: Counter[str] = Counter()
        plugins = {"held": plugin, "noise": noise_family}
        super().__init__(plugins=plugins, metrics="127.0.0.1:0", limits={"max_batch_rows": 2}, **settings)

    def open(self, rpc: str, stub: Any = None, timeout: float = 60, **parameters: Any) -> Stream:
        """Begin a stream. That of Watch is of a kept job whose own client has gone."""
        parameters = {"prompt": "x", "num_inference_steps": 6, "request_id": f"job-{next(self._numbers)}", **parameters}
        if rpc == "Watch":
            made = self.open("Generate", disconnect_policy=KEEP, **parameters)
            made.read_until("accepted")
            made.call.cancel()
            return self.watch(parameters["request_id"], stub, timeout)
        if rpc == "Preprocess":
            wish = struct({"fault": parameters["prompt"] == "fault"})
            fields = {"request_id": parameters["request_id"], "image": PICTURE, "preprocessor_options": wish}
            return self._call(rpc, pb.PreprocessRequest(preprocessor="held", **fields), stub, timeout)
        if rpc == "Edit":
            edit = edit_request(image=PICTURE, image_to_image=FULL, **parameters)
            return self._call(rpc, edit, stub, timeout)
        return self._call(rpc, generate_request(**parameters), stub, timeout)

    def watch(self, request_id: str, stub: Any = None, timeout: float = 60) -> Stream:
        return self._call("Watch", pb.WatchRequest(request_id=request_id), stub, timeout)

    def _call(self, rpc: str, request: Any, stub: Any, timeout: float) -> Stream:
        self.called[rpc] += 1
        return Stream(getattr(stub or self.images, rpc)(request, timeout=timeout))

    @contextlib.contextmanager
    def held(self, place: str) -> Iterator[dict[str, Any]]:
        """Held at this place; yields the parameters of a job that comes there."""
        if place != "queued":
            with self.gate.at(place):
                yield {"model": "cold"} if place == "loading" else {}
            return
        first = self.open("Generate", num_inference_steps=LONG)
        first.read_until("step")
        yield {}
        first.call.cancel()

    def come(self, stream: Stream, place: str) -> None:
        """Wait until the stream's job is at the place, and its client knows that it is on its way there."""
        events = {"queued": "queued", "loading": "loading", "preview": "preview", "midway": "step", "decode": "step"}
        stream.read_until(events[place])
        assert place == "queued" or self.gate.reached.wait(60)


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("matrix")
    size = {"max_edge": 1024, "max_pixels": 1024 * 1024}
    broken = folder / "broken"
    broken.mkdir()
    for file in tiny_model.rglob("*"):
        if file.is_file():
            target = broken / file.relative_to(tiny_model)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return [
        {"name": "tiny", "path": tiny_model},
        {"name": "cold", "path": tiny_model, "preload": False},
        {"name": "broken", "path": broken, "preload": False},
        {"name": "noise", "path": save_noise(folder / "noise"), **size},
    ]


@pytest.fixture(scope="module")
def server(models: list[dict[str, Any]]) -> Iterator[HeldServer]:
    with pytest.MonkeyPatch.context() as patch, HeldServer(models=models) as running:
        load = ModelHolding.load

        def held_load(self: ModelHolding, report: Any) -> None:
            load(self, report)
            if self.key == ("model", "cold"):
                running.gate.come("loading")

        patch.setattr(ModelHolding, "load", held_load)
        for model in ("tiny", "cold"):  # what is made once, as the tables of schedulers
            for steps in (6, LONG):
                running.open("Generate", model=model, num_inference_steps=steps).read()
        running.catalog.UnloadModel(UnloadModelRequest(model="cold"))
        for file in Path(models[2]["path"], "unet").glob("*.safetensors"):  # after the start, which looks at it
            file.write_bytes(file.read_bytes()[:-1000])
        refused(running.open("Generate", model="broken").read)
        yield running


def streams_end(server: RunningServer) -> None:
    """Wait until the server has no stream open."""
    while sum(value for name, value in read(server).items() if name.startswith("darkroom_streams_open")):
        pass  # the test's own time limit ends this


class State(NamedTuple):
    """What a server holds, and has counted."""

    called: Counter[str]
    ends: Counter[str]  # of calls, by RPC
    jobs: float  # that have left the engine
    bytes: float  # of tensors, without the embeddings that the cache of prompts has


def state_of(server: HeldServer) -> State:
    found, ends = read(server), Counter[str]()
    for name, count in found.items():
        kind, _, labels = name.partition(" method=/darkroom.v1.ImageService/")
        if kind == "darkroom_calls_total" and (rpc := labels.partition(" ")[0]) in (*JOBS, "Preprocess"):
            ends[rpc] += int(count)
    gc.collect()
    tensors = (each for each in gc.get_objects() if isinstance(each, torch.Tensor) and each.device.type == "cpu")
    storages = {each.data_ptr(): each.nbytes() for each in (tensor.untyped_storage() for tensor in tensors)}
    held = sum(storages.values()) - found["darkroom_prompt_cache_bytes"]
    return State(server.called.copy(), ends, total(found, "darkroom_jobs_ended_total"), held)


def check_nothing_is_left(server: HeldServer, before: State, caplog: pytest.LogCaptureFixture) -> None:
    settle(server)
    streams_end(server)
    assert not any(value for name, value in read(server).items() if name.startswith("darkroom_jobs "))
    caplog.get_records("call").clear()  # a logged exception holds what it went through
    wait_for(lambda: alive(Sample, Job) == 0)  # the engine may be in the turn still in which they ended
    wait_for(lambda: state_of(server).bytes <= before.bytes)
    after = state_of(server)
    called = after.called - before.called
    assert after.ends - before.ends == called  # one end each
    assert after.jobs - before.jobs == called["Generate"] + called["Edit"]


@pytest.fixture
def counted(server: HeldServer, caplog: pytest.LogCaptureFixture) -> Iterator[HeldServer]:
    """The server; after the test nothing is left of its jobs and calls."""
    before = state_of(server)
    yield server
    check_nothing_is_left(server, before, caplog)
    assert server.generate(prompt="x", num_inference_steps=1).kinds[-1] == "completed"


def by_cancelling(server: HeldServer, stream: Stream) -> StatusCode:
    stream.call.cancel()
    return StatusCode.CANCELLED


def by_request(server: HeldServer, stream: Stream) -> StatusCode:
    assert server.images.Cancel(pb.CancelRequest(request_id=stream.events[0].request_id)).cancelled
    return StatusCode.CANCELLED


@pytest.mark.parametrize("leave", [by_cancelling, by_request])
@pytest.mark.parametrize("place", ["queued", "loading", "preview", "midway", "decode"])
@pytest.mark.parametrize("rpc", JOBS)
def test_cancelled(
    counted: HeldServer, rpc: str, place: str, leave: Callable[[HeldServer, Stream], StatusCode]
) -> None:
    with counted.held(place) as parameters:
        stream = counted.open(rpc, **parameters)
        counted.come(stream, place)
        status = leave(counted, stream)
        assert refused(stream.read).code is status
    if rpc == "Watch" and leave is by_cancelling:  # a watcher's leaving is not the job's end
        assert counted.watch(stream.events[0].request_id).read().kinds[-1] == "completed"
    settle(counted)
    counted.catalog.UnloadModel(UnloadModelRequest(model="cold"))


@pytest.mark.parametrize("rpc", [*JOBS, "Preprocess"])
class TestEnds:
    place: dict[str, str] = {"Preprocess": "preprocessor"}  # noqa: RUF012

    def held(self, server: HeldServer, rpc: str) -> str:
        return self.place.get(rpc, "midway")

    def test_done(self, counted: HeldServer, rpc: str) -> None:
        assert counted.open(rpc).read().kinds[-1] == "completed"

    def test_deadline(self, counted: HeldServer, rpc: str) -> None:
        with counted.held(self.held(counted, rpc)):
            stream = counted.open(rpc, timeout=SECONDS)
            assert refused(stream.read).code is StatusCode.DEADLINE_EXCEEDED

    def test_vanished_client(self, counted: HeldServer, rpc: str) -> None:
        channel = grpc.insecure_channel(counted.address, options=[("grpc.use_local_subchannel_pool", 1)])
        with counted.held(self.held(counted, rpc)):
            stream = counted.open(rpc, ImageServiceStub(channel))
            if rpc != "Preprocess":
                stream.read_until("step")
            assert counted.gate.reached.wait(60)
            channel.close()

    def test_cancelled_by_its_client(self, counted: HeldServer, rpc: str) -> None:
        with counted.held(self.held(counted, rpc)):
            stream = counted.open(rpc)
            assert counted.gate.reached.wait(60)
            stream.call.cancel()
            assert refused(stream.read).code is StatusCode.CANCELLED

    def test_cancelled_by_request(self, counted: HeldServer, rpc: str) -> None:
        with counted.held(self.held(counted, rpc)):
            stream = counted.open(rpc, request_id=f"cancelled-{rpc}")
            assert counted.gate.reached.wait(60)
            assert counted.images.Cancel(pb.CancelRequest(request_id=f"cancelled-{rpc}")).cancelled
            failed = refused(stream.read)
            assert (failed.code, failed.message) == (StatusCode.CANCELLED, "the job was cancelled")

    def test_plugin_fault(self, counted: HeldServer, rpc: str) -> None:
        failed = refused(counted.open(rpc, prompt="fault").read)
        assert (failed.code, failed.reason) == (StatusCode.INTERNAL, "PLUGIN_FAILED")

    def test_shutdown(self, models: list[dict[str, Any]], rpc: str, caplog: pytest.LogCaptureFixture) -> None:
        with HeldServer(models=models[:1]) as server:
            place = self.held(server, rpc)
            with server.held(place):
                stream = server.open(rpc)
                if rpc != "Preprocess":
                    stream.read_until("step")
                assert server.gate.reached.wait(60)
                stopping = server.begin(server.app.stop())
                failed = refused(stream.read)
            stopping.result(60)
            assert (failed.code, failed.reason) == (StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
            assert server.app.jobs.active_jobs == 0
        caplog.get_records("call").clear()
        wait_for(lambda: alive(Sample, Job) == 0)


@pytest.mark.parametrize("rpc", JOBS)
class TestFaults:
    def test_out_of_memory(self, counted: HeldServer, rpc: str) -> None:
        failed = refused(counted.open(rpc, prompt="memory").read)
        assert (failed.code, failed.reason) == (StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY")

    def test_model_fault(self, counted: HeldServer, rpc: str) -> None:
        failed = refused(counted.open(rpc, model="broken").read)
        assert failed.reason == "LOAD_FAILED"


@pytest.mark.parametrize("rpc", JOBS)
def test_slow_reader(rpc: str, models: list[dict[str, Any]], caplog: pytest.LogCaptureFixture) -> None:
    size = {"width": 1024, "height": 1024, "num_images": 8, "num_inference_steps": 1}
    with HeldServer(models=models[-1:], slow_reader_seconds=0.5) as server:
        server.open("Generate", model="noise", num_inference_steps=1).read()  # what is made once
        before = state_of(server)
        stream = server.open(rpc, model="noise", **size)
        stream.read_until("image")
        streams_end(server)  # without reading on
        failed = refused(stream.read)
        assert (failed.code, failed.reason) == (StatusCode.RESOURCE_EXHAUSTED, "SLOW_READER")
        assert read(server)["darkroom_cancels_total cause=slow_reader"] == 1
        check_nothing_is_left(server, before, caplog)
