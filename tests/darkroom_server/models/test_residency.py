"""Models that come and go: who is loaded, who leaves, who waits."""

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from darkroom.v1 import catalog_service_pb2 as pb
from darkroom.v1 import image_service_pb2, parameters_pb2
from darkroom_server.models.holdings import AssetHolding
from darkroom_server.models.model import ModelError
from tests.support import RunningServer, Stream, alike, details, generate_request, png
from tests.tiny import save_sd

NAMES = ("first", "second", "third")
BASE: dict[str, Any] = {"prompt": "a red circle", "seed": 5, "num_inference_steps": 4, "scheduler": "euler"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("store")
    return {name: save_sd(root / name, seed=40 + seed) for seed, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def alone(folders: dict[str, Path]) -> Iterator[dict[str, np.ndarray]]:
    """Each model's picture, from a server without a budget."""
    with serving(folders) as server:
        yield {name: server.generate(model=name, **BASE).pixels for name in folders}


def serving(folders: dict[str, Path], **settings: Any) -> RunningServer:
    return RunningServer(models=[{"name": name, "path": path} for name, path in folders.items()], **settings)


def size(server: RunningServer) -> int:
    """What one of the models weighs."""
    return models(server)["first"].weight_bytes


def models(server: RunningServer) -> dict[str, pb.Model]:
    return {model.name: model for model in server.catalog.ListModels(pb.ListModelsRequest()).models}


def residency(server: RunningServer) -> dict[str, str]:
    return {name: pb.Residency.Name(m.residency).removeprefix("RESIDENCY_") for name, m in models(server).items()}


def together(server: RunningServer, requests: list[dict[str, Any]]) -> list[Stream]:
    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(lambda request: server.generate(**request), requests))


def loadings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was loaded, in order."""
    return [r.getMessage().split(" loaded in")[0] for r in caplog.records if " loaded in " in r.getMessage()]


@contextlib.contextmanager
def watching_weights(server: RunningServer) -> Iterator[list[int]]:
    """The bytes of all models' networks, seen again and again."""
    families = [model.family for model in server.app.catalog.models.values()]
    seen, stop = [], threading.Event()

    def watch() -> None:
        while not stop.wait(0.001):
            networks = [network for family in families for network in tuple(family.components.values())]
            seen.append(sum(p.nbytes for network in networks for p in network.parameters()))

    thread = threading.Thread(target=watch)
    thread.start()
    yield seen
    stop.set()
    thread.join()


@pytest.fixture(scope="module")
def weight(folders: dict[str, Path]) -> int:
    with serving({"first": folders["first"]}) as server:
        return size(server)


def test_two_models_take_turns_where_there_is_room_for_one(
    folders: dict[str, Path], alone: dict[str, np.ndarray], weight: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "darkroom_server")
    two = {name: folders[name] for name in ("first", "second")}
    with serving(two, memory_budget=weight * 3 // 2) as server, watching_weights(server) as seen:
        assert residency(server) == {"first": "RESIDENT", "second": "ABSENT"}
        for name in ("second", "first", "second"):
            assert alike(server.generate(model=name, **BASE).pixels, alone[name])
        in_turn = len(loadings(caplog))
        names = ["first", "second"] * 4
        streams = together(server, [{"model": name, **BASE} for name in names])
        for name, stream in zip(names, streams, strict=True):
            assert np.abs(stream.pixels - alone[name]).max() <= 1
    assert in_turn == 4  # the first at the start
    assert len(loadings(caplog)) - in_turn <= 6, "models changed places for each job"
    assert weight in seen
    assert max(seen) <= weight * 3 // 2


def test_ten_jobs_for_a_cold_model_load_it_once(
    folders: dict[str, Path], alone: dict[str, np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "darkroom_server")
    with RunningServer(models=[{"name": "first", "path": folders["first"], "preload": False}]) as server:
        assert residency(server) == {"first": "ABSENT"}
        streams = together(server, [BASE] * 10)
    assert loadings(caplog) == ["model first"]
    for stream in streams:
        assert np.abs(stream.pixels - alone["first"]).max() <= 1
        assert stream.kinds.index("loading") < stream.kinds.index("step")
        assert 0 < stream.of("completed")[0].timings.load_seconds < stream.of("completed")[0].timings.total_seconds
    loading = streams[0].of("loading")[-1]
    assert loading.model == "first"
    assert 0 <= loading.bytes_done <= loading.bytes_total


def test_who_waits_for_long_is_served_before_who_came_later(folders: dict[str, Path], weight: int) -> None:
    """Jobs for a model that is there do not keep out one for a model that must take its place."""
    two = {name: folders[name] for name in ("first", "second")}
    ends: list[tuple[str, str]] = []
    with serving(two, memory_budget=weight) as server:

        def read(name: str, stream: Any) -> None:
            ends.append((name, stream.read().kinds[-1]))

        threads = []
        for model, name, steps in (("first", "long", 150), ("second", "other", 2), ("first", "late", 2)):
            stream = server.start(generate_request(model=model, **{**BASE, "num_inference_steps": steps}))
            stream.read_until("accepted")  # it has asked for its model then
            threads.append(threading.Thread(target=read, args=(name, stream)))
            threads[-1].start()
        for thread in threads:
            thread.join()
    assert ends == [(name, "completed") for name in ("long", "other", "late")]


def test_the_least_recently_used_leaves(folders: dict[str, Path], weight: int) -> None:
    with serving(folders, memory_budget=weight * 2) as server:
        assert residency(server) == {"first": "RESIDENT", "second": "RESIDENT", "third": "ABSENT"}
        for name in ("second", "first", "third"):
            server.generate(model=name, **BASE)
        assert residency(server) == {"first": "RESIDENT", "second": "ABSENT", "third": "RESIDENT"}


def test_parked_models_come_back_the_same(folders: dict[str, Path], alone: dict[str, np.ndarray], weight: int) -> None:
    with serving(folders, memory_budget=weight, park_budget=weight) as server:
        for name in ("second", "first", "third"):
            assert alike(server.generate(model=name, **BASE).pixels, alone[name])
        assert residency(server) == {"first": "PARKED", "second": "ABSENT", "third": "RESIDENT"}
        assert alike(server.generate(model="first", **BASE).pixels, alone["first"])


def test_idle_models_leave(folders: dict[str, Path], alone: dict[str, np.ndarray]) -> None:
    with serving({"first": folders["first"]}, idle_seconds=0.2) as server:
        deadline = time.monotonic() + 20
        while residency(server)["first"] != "ABSENT":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert alike(server.generate(model="first", **BASE).pixels, alone["first"])


def test_pictures_do_not_change_while_a_half_precision_model_loads(folders: dict[str, Path]) -> None:
    """LCM and IPNDM compute in torch's default type, which the libraries' own loading sets for the whole process."""
    half = {"name": "half", "path": folders["second"], "dtype": "float16", "preload": False}
    jobs = [{**BASE, "scheduler": name, "num_inference_steps": 10} for name in ("lcm", "ipndm")]
    with RunningServer(models=[{"name": "first", "path": folders["first"]}, half]) as server:
        before = [stream.pixels for stream in together(server, jobs)]
        stop, loaded = threading.Event(), []

        def load_again_and_again() -> None:
            while not stop.is_set():
                loaded.append(list(server.catalog.LoadModel(pb.LoadModelRequest(model="half")))[-1].model)
                server.catalog.UnloadModel(pb.UnloadModelRequest(model="half"))

        thread = threading.Thread(target=load_again_and_again)
        thread.start()
        during = []
        while len(loaded) < 2:
            during += [stream.pixels for stream in together(server, jobs)]
        stop.set()
        thread.join()
    assert {model.dtype for model in loaded} == {"float16"}
    for one, other in zip(itertools.cycle(before), during, strict=False):
        assert np.abs(one - other).max() <= 1


class TestOperators:
    def test_load_and_unload(self, folders: dict[str, Path]) -> None:
        with serving({"first": folders["first"]}) as server:
            limits = server.app.engine.recovery.limits
            limits.lower("some work", 1)
            first = server.catalog.UnloadModel(pb.UnloadModelRequest(model="first"))
            assert (first.freed_bytes, residency(server)["first"]) == (size(server), "ABSENT")
            assert server.catalog.UnloadModel(pb.UnloadModelRequest(model="first")).freed_bytes == 0
            updates = list(server.catalog.LoadModel(pb.LoadModelRequest(model="first")))
            assert limits.of("some work", 8) == 8, "what was freed may have room for more"
            kinds = [update.WhichOneof("update") for update in updates]
            assert kinds == ["loading"] * (len(kinds) - 1) + ["model"]
            assert len(kinds) > 1
            assert updates[-1].model.residency == pb.RESIDENCY_RESIDENT
            again = list(server.catalog.LoadModel(pb.LoadModelRequest(model="first")))
            assert [update.WhichOneof("update") for update in again] == ["model"]

    def test_memory_goes_back_to_the_device_when_nothing_runs(
        self, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        idle: list[bool] = []
        monkeypatch.setattr(
            "darkroom_server.engine.engine.clear_device_cache", lambda: idle.append(server.app.engine.idle)
        )
        with serving({name: folders[name] for name in NAMES[:2]}) as server:
            stream = server.start(generate_request(**{**BASE, "num_inference_steps": 400}, model="first"))
            stream.read_until("step")
            assert server.catalog.UnloadModel(pb.UnloadModelRequest(model=NAMES[1])).freed_bytes > 0
            for _ in range(3):
                stream.read_until("step")
            assert not idle
            stream.call.cancel()
            while not idle:
                server.run(server.app.engine.call(lambda: None))
        assert idle == [True]

    def test_unloading_waits_for_the_jobs(self, folders: dict[str, Path]) -> None:
        with serving({"first": folders["first"]}) as server:
            stream = server.start(generate_request(**{**BASE, "num_inference_steps": 60}))
            stream.read_until("step")
            unloading = server.catalog.UnloadModel.future(pb.UnloadModelRequest(model="first"))
            assert residency(server)["first"] == "RESIDENT"
            assert stream.read().kinds[-1] == "completed"
            assert unloading.result(20).freed_bytes > 0

    def test_models_in_use_leave_no_room(self, folders: dict[str, Path], weight: int) -> None:
        with serving(folders, memory_budget=weight) as server:
            stream = server.start(generate_request(model="first", **{**BASE, "num_inference_steps": 500}))
            stream.read_until("step")
            with pytest.raises(grpc.RpcError) as error:
                list(server.catalog.LoadModel(pb.LoadModelRequest(model="second")))
            assert details(error.value)[0] == "OUT_OF_MEMORY"
            stream.call.cancel()

    @pytest.mark.parametrize(("name", "reason"), [("", "INVALID_REQUEST"), ("missing", "MODEL_NOT_FOUND")])
    def test_unknown_models(self, server: RunningServer, name: str, reason: str) -> None:
        for call in (
            lambda: list(server.catalog.LoadModel(pb.LoadModelRequest(model=name))),
            lambda: server.catalog.UnloadModel(pb.UnloadModelRequest(model=name)),
        ):
            with pytest.raises(grpc.RpcError) as error:
                call()
            assert details(error.value)[0] == reason
            assert set(details(error.value)[1]) == {"model"}


class TestFailures:
    def test_a_budget_smaller_than_a_model(self, folders: dict[str, Path], weight: int) -> None:
        with pytest.raises(ModelError, match=r"memory_budget: .* too few: 'first' takes .*, 'second' takes"):
            serving(folders, memory_budget=weight - 1).__enter__()

    def test_weights_that_do_not_load(self, folders: dict[str, Path], tmp_path: Path) -> None:
        broken = save_sd(tmp_path / "broken")
        file = broken / "unet" / "diffusion_pytorch_model.safetensors"
        listed = [{"name": "first", "path": folders["first"]}, {"name": "broken", "path": broken, "preload": False}]
        with RunningServer(models=listed) as server:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
            with pytest.raises(ModelError, match=r"model 'broken': .* does not load: unet: .* not a whole safetensors"):
                serving({"broken": broken}).__enter__()
            for _ in range(2):
                with pytest.raises(grpc.RpcError) as error:
                    server.generate(model="broken", **BASE)
                assert (error.value.code().name, details(error.value)[0]) == ("INTERNAL", "LOAD_FAILED")
            assert residency(server)["broken"] == "ABSENT"
            assert server.generate(model="first", **BASE).kinds[-1] == "completed"

    def test_a_model_with_its_controlnets_that_fit_no_budget(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        nets = [{"name": name, "path": folder / f"sd-{name}"} for name in ("edges", "depth")]
        with RunningServer(models=[{"name": "sd", "path": folder / "sd"}], controlnets=nets) as server:
            store = server.app.residency
            net = next(h for h in store.holdings.values() if isinstance(h, AssetHolding))
            monkeypatch.setattr(store, "budget", models(server)["sd"].weight_bytes + net.device_bytes)
            image = png(np.zeros((32, 32, 3), np.uint8))
            one, other = (parameters_pb2.ControlSpec(model=name, image=image) for name in ("edges", "depth"))
            for control in (one, other, one):  # each leaves for the other
                assert server.generate(**BASE, controls=[control]).kinds[-1] == "completed"
            with pytest.raises(grpc.RpcError) as error:
                server.generate(**BASE, controls=[one, other])
            assert details(error.value)[0] == "OUT_OF_MEMORY"

    def test_a_device_that_is_full(self, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a budget what is idle leaves when a loading finds no memory."""
        import darkroom_server.models.holdings as loading

        def filling(*arguments: Any) -> None:
            others = [m.family for m in server.app.catalog.models.values() if m.family.components]
            if others:
                raise torch.OutOfMemoryError
            original(*arguments)

        original = loading.load_weights
        listed = [{"name": name, "path": folders[name], "preload": name == "first"} for name in ("first", "second")]
        with RunningServer(models=listed) as server:
            monkeypatch.setattr(loading, "load_weights", filling)
            assert server.generate(model="second", **BASE).kinds[-1] == "completed"
            assert residency(server) == {"first": "ABSENT", "second": "RESIDENT"}
            stream = server.start(generate_request(model="second", **{**BASE, "num_inference_steps": 500}))
            stream.read_until("step")
            with pytest.raises(grpc.RpcError) as error:
                server.generate(model="first", **BASE)
            assert details(error.value)[0] == "OUT_OF_MEMORY"
            stream.call.cancel()


def test_a_step_that_finds_no_memory_gets_that_of_idle_models(
    folders: dict[str, Path], alone: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = {name: folders[name] for name in ("first", "second")}
    with serving(two, park_budget=2**30) as server:
        first, second = (server.app.catalog.models[name].family for name in two)
        forward = second.unet.forward

        def tight(*arguments: Any, **more: Any) -> Any:
            if first.components:
                raise torch.OutOfMemoryError
            return forward(*arguments, **more)

        monkeypatch.setattr(second.unet, "forward", tight)
        assert alike(server.generate(model="second", **BASE).pixels, alone["second"])
        assert residency(server) == {"first": "PARKED", "second": "RESIDENT"}


def test_who_stops_waiting_leaves_nothing(folders: dict[str, Path], weight: int) -> None:
    with serving(folders, memory_budget=weight) as server:
        stream = server.start(generate_request(model="first", request_id="x", **{**BASE, "num_inference_steps": 500}))
        stream.read_until("step")
        waiting = [server.start(generate_request(model="second", **BASE)) for _ in range(3)]
        for each in waiting:
            each.read_until("accepted")
        waiting[0].call.cancel()
        server.images.Cancel(image_service_pb2.CancelRequest(request_id="x"))
        for each in waiting[1:]:
            assert each.read().kinds[-1] == "completed"
        store = server.app.residency
        deadline = time.monotonic() + 20
        while any(holding.users for holding in store.holdings.values()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert store.waiting == 0
