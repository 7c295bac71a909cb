"""What an edge has of its own: HTTP, metrics, and bounds of what waits for it."""

import asyncio
import base64
import hashlib
import io
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx2
import numpy as np
import pytest
from grpc import StatusCode
from PIL import Image

from darkroom.v1 import edits_pb2
from darkroom.v1.catalog_service_pb2 import ListModelsRequest, ListTasksRequest
from darkroom.v1.image_service_pb2 import CancelRequest
from darkroom_server.cluster.wire import Call, Reply, Residence
from darkroom_server.config.settings import Settings
from darkroom_server.jobs import registry
from tests import noise_family
from tests.darkroom_server.api.test_slow_readers import PICTURES
from tests.darkroom_server.cluster.conftest import ReplicasHere
from tests.darkroom_server.web.http import GENERATE, stream_json
from tests.noise_family import save_noise
from tests.scraping import read
from tests.support import RunningServer, Stream, generate_request, png, refused, wait_for

ME = [("authorization", "Bearer t0ken")]
BEARER = {"authorization": "Bearer t0ken"}
SAME = {"prompt": "x", "seed": 7, "num_inference_steps": 4, "deterministic": True}


@pytest.fixture(scope="module")
def locked(tiny_model: Path) -> Iterator[RunningServer]:
    """With HTTP, metrics and a token."""
    tokens = [{"name": "me", "role": "operator", "sha256": hashlib.sha256(b"t0ken").hexdigest()}]
    doors = {"http": "127.0.0.1:0", "metrics": "127.0.0.1:0"}
    models = [{"name": "tiny", "path": tiny_model}]
    with RunningServer(replicas=ReplicasHere().open, models=models, tokens=tokens, **doors) as running:
        yield running


@pytest.fixture
def http(locked: RunningServer) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=locked.app.url, timeout=60, headers=BEARER) as client:
        yield client


def start(edge: RunningServer, timeout: float = 60, **parameters: Any) -> Stream:
    return Stream(edge.images.Generate(generate_request(**parameters), metadata=ME, timeout=timeout))


def test_connect_and_the_images_api_are_answered(
    locked: RunningServer, http: httpx2.Client, server: RunningServer
) -> None:
    by_grpc = server.generate(**SAME).files()[0]
    parameters = {"prompt": "x", "seed": "7", "numInferenceSteps": 4}
    *events, end = stream_json(http, GENERATE, {"parameters": parameters, "deterministic": True})
    assert end == {}
    assert [base64.b64decode(each["event"]["image"]["imageBytes"]) for each in events if "image" in each["event"]] == [
        by_grpc
    ]
    own = {"prompt": "x", "seed": 7, "steps": 4, "darkroom": {"deterministic": True}}
    answer = http.post("/v1/images/generations", json=own)
    assert base64.b64decode(answer.json()["data"][0]["b64_json"]) == by_grpc
    assert httpx2.post(f"{locked.app.url}/v1/images/generations", json=own).status_code == 401


def test_a_mask_of_the_images_api_is_decoded_at_the_edge(http: httpx2.Client, server: RunningServer) -> None:
    picture = png(np.tile(np.arange(32, dtype=np.uint8)[:, None, None] * 7, (1, 32, 3)))
    hole = np.full((32, 32, 4), 255, np.uint8)
    hole[8:24, 8:24, 3] = 0
    white = np.zeros((32, 32), np.uint8)
    white[8:24, 8:24] = 255
    file = io.BytesIO()
    Image.fromarray(hole).save(file, "PNG")
    fields = {"prompt": "x", "seed": "7", "steps": "4", "strength": "0.9", "darkroom": '{"deterministic": true}'}
    answer = http.post("/v1/images/edits", data=fields, files={"image": picture, "mask": file.getvalue()})
    expected = server.edit(image=picture, inpaint=edits_pb2.Inpaint(mask=png(white), strength=0.9), **SAME)
    assert base64.b64decode(answer.json()["data"][0]["b64_json"]) == expected.files()[0]


def test_metrics_are_those_of_calls_jobs_and_replicas(locked: RunningServer) -> None:
    before = read(locked)
    start(locked, num_inference_steps=2, num_images=2).read()
    refused(lambda: start(locked, width=13).read())
    ended = "darkroom_calls_total method=/darkroom.v1.ImageService/Generate reason="
    wait_for(lambda: read(locked).get(f"{ended}OK", 0) > before.get(f"{ended}OK", 0))
    moved = {name: value - before.get(name, 0) for name, value in read(locked).items()}
    assert (moved[f"{ended}OK"], moved[f"{ended}INVALID_REQUEST"]) == (1, 1)
    assert moved["darkroom_token_jobs_total token=me"] == 1
    assert moved["darkroom_token_pixels_total token=me"] == 2 * 32 * 32
    manual = (Path(__file__).parents[3] / "server/configuration.md").read_text()
    kinds = {
        name.partition(" ")[0].removesuffix("_bucket").removesuffix("_count").removesuffix("_sum") for name in moved
    }
    assert all(f"`{name}`" in manual for name in kinds)
    rows = [moved[f"darkroom_batch_rows_sum replica=replica-{number}"] for number in range(2)]
    assert (min(rows), max(rows) >= 8) == (0, True)


def test_one_edge_tells_the_metrics_of_replicas(locked: RunningServer) -> None:
    for _ in range(2):
        assert read(locked)["darkroom_weights_bytes place=device replica=replica-0"] > 0
        assert locked.run(locked.app.replicas.metrics("another")) == {"replica-0": "", "replica-1": ""}


def test_what_waits_to_be_read_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "BLOCKED_SECONDS", 0.0)
    model = {"name": "noise", "path": save_noise(tmp_path / "noise"), "max_edge": 1024, "max_pixels": 1024 * 1024}
    replicas = ReplicasHere(1, {"noise": noise_family})

    async def with_room(settings: Settings) -> ReplicasHere:
        return await replicas.open(settings.model_copy(update={"max_unread_bytes": 2**30}))

    with RunningServer(replicas=with_room, models=[model], max_unread_bytes="4 MiB") as edge:
        slow = edge.start(generate_request(**PICTURES), timeout=600)
        slow.read_until("image")
        wait_for(lambda: replicas.left() == 0, seconds=100)  # the edge has all, of which it has written what it can
        assert edge.start(generate_request(**PICTURES), timeout=600).read().kinds[-1] == "completed"
        failed = refused(slow.read)
        assert (failed.code, failed.reason) == (StatusCode.RESOURCE_EXHAUSTED, "SLOW_READER")


def test_replicas_hear_of_clients_and_deadlines(edge: RunningServer, here: ReplicasHere) -> None:
    here.called.clear()
    edge.generate(prompt="x", num_inference_steps=1)
    with grpc.insecure_channel(edge.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        images = type(edge.images)(channel)
        Stream(images.Generate(generate_request(prompt="x", num_inference_steps=1))).read()
    assert len({call.client for _, call in here.called} - {""}) == 2
    first, second = (call.seconds for _, call in here.called)
    assert first is not None
    assert 0 < first <= 60.1  # gRPC sends timeouts of this length in tenths of a second, rounded up
    assert second is None


@pytest.mark.parametrize("known", [["other"], []])
def test_a_token_that_replicas_do_not_have_has_no_rights_there(known: list[str], tiny_model: Path) -> None:
    """Its limits are theirs to keep: that they do not know them must not mean that there are none."""
    tokens = {
        name: {"name": name, "role": "user", "sha256": hashlib.sha256(name.encode()).hexdigest(), "models": ["noise"]}
        for name in ("t0ken", "other")
    }

    class Older(ReplicasHere):
        async def open(self, settings: Settings) -> ReplicasHere:
            own = [each for each in settings.tokens if each.name in known]
            return await super().open(settings.model_copy(update={"tokens": own}))

    models = [{"name": name, "path": tiny_model} for name in ("tiny", "noise")]
    with RunningServer(replicas=Older(1).open, models=models, tokens=list(tokens.values())) as edge:
        failed = refused(start(edge, prompt="x", model="tiny").read)
        assert failed.code is StatusCode.UNAUTHENTICATED


def test_a_call_whose_replica_ends_before_its_answer_is_tried_again(tiny_model: Path) -> None:
    class Ending(ReplicasHere):
        ending = 2

        async def call(self, call: Call, model: str, replica: str = "") -> AsyncGenerator[Reply, None]:
            if self.ending:
                self.ending -= 1
                yield Residence(replica or next(iter(self.replicas)), 0.0, ())
                return
            async for reply in super().call(call, model, replica):
                yield reply

    replicas = Ending(1)
    with RunningServer(replicas=replicas.open, models=[{"name": "tiny", "path": tiny_model}]) as edge:
        assert edge.catalog.ListTasks(ListTasksRequest()).tasks
        replicas.ending = 2
        assert edge.catalog.ListModels(ListModelsRequest()).models
        replicas.ending = 4
        failed = refused(lambda: edge.catalog.ListModels(ListModelsRequest()))
        assert failed.reason == "DEVICE_LOST"


class Taken(ReplicasHere):
    """A replica where a job of another edge waits."""

    async def describe(self) -> list[dict[str, Any]]:
        return [{**each, "queued": each["queued"] + 1} for each in await super().describe()]


def test_jobs_of_other_edges_count(tiny_model: Path) -> None:
    models, limits = [{"name": "tiny", "path": tiny_model}], {"max_queued_jobs": 1, "max_queued_jobs_per_client": 1}
    replicas = Taken(1)
    with RunningServer(replicas=replicas.open, models=models, limits=limits) as edge:
        wait_for(lambda: edge.app.backend.jobs.admission.elsewhere == 1)
        failed = refused(lambda: edge.generate(prompt="x"))
        assert failed.reason == "QUEUE_FULL"
        assert replicas.called == []


class NoReplicas:
    """A cluster whose replicas are still being started."""

    async def open(self, settings: Settings) -> "NoReplicas":
        return self

    async def call(self, call: Call, model: str, replica: str = "") -> AsyncGenerator[Reply, None]:
        await asyncio.Event().wait()
        yield []

    async def describe(self) -> list[dict[str, Any]]:
        return []

    async def close(self) -> None:
        pass


def test_no_more_jobs_wait_than_all_replicas_take(tiny_model: Path) -> None:
    models, limits = [{"name": "tiny", "path": tiny_model}], {"max_queued_jobs": 2, "max_queued_jobs_per_client": 2}
    with RunningServer(replicas=NoReplicas().open, models=models, limits=limits) as edge:
        waiting = [edge.start(generate_request(prompt="x", request_id=name)) for name in ("one", "two")]
        wait_for(lambda: edge.app.backend.jobs.active_jobs == 2)
        failed = refused(lambda: edge.generate(prompt="x"))
        assert (failed.code, failed.reason) == (StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert "2 jobs are waiting" in failed.message
        assert edge.images.Cancel(CancelRequest(request_id="one")).cancelled
        again = edge.start(generate_request(prompt="x", request_id="three"))
        wait_for(lambda: edge.app.backend.jobs.find("", "three") is not None)
        for each in (*waiting, again):
            each.call.cancel()
