"""An edge over replicas in this process: forwarding, and what it does when a replica is lost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode

from darkroom.v1 import catalog_service_pb2, parameters_pb2
from darkroom.v1.image_service_pb2 import (
    JOB_STATE_RUNNING,
    CancelRequest,
    ListJobsRequest,
    PreprocessRequest,
    WatchRequest,
)
from darkroom_server.cluster.backend import MAX_RESTARTS, RUN_SEQUENCES
from darkroom_server.cluster.scaling import TAKEN, WAITING
from darkroom_server.cluster.wire import LEASE_SECONDS
from tests.darkroom_server.cluster.conftest import ReplicasHere
from tests.support import RunningServer, Stream, generate_request, png, refused, wait_for
from tests.test_repository import loaded_by
from tests.tiny import save_lora

KEEP = parameters_pb2.DISCONNECT_POLICY_KEEP
SAME: dict[str, Any] = {"prompt": "x", "num_inference_steps": 8, "num_images": 2, "deterministic": True}
LONG = {"prompt": "x", "num_inference_steps": 400}


def check_whole(stream: Stream, steps: int, images: int) -> None:
    """Each event once and in order, whatever was lost meanwhile."""
    sequences = [event.sequence for event in stream.events]
    assert sequences == sorted(set(sequences))
    assert [stream.kinds[0], stream.kinds[-1]] == ["accepted", "completed"]
    assert stream.kinds.count("accepted") == 1
    for index in range(images):
        assert [step.step for step in stream.of("step") if step.image_index == index] == list(range(1, steps + 1))
    assert [image.image_index for image in stream.of("image")] == list(range(images))
    assert all(len(data) == stream.of("image")[index].total_bytes for index, data in stream.files().items())


def test_the_edge_imports_no_torch() -> None:
    assert loaded_by("import darkroom_server.cluster.edge", ["torch", "diffusers", "transformers", "ray"]) == []


def test_a_picture_of_a_replica_is_that_of_a_server(edge: RunningServer, server: RunningServer) -> None:
    request = {**SAME, "seed": 5}
    stream = edge.generate(**request)
    check_whole(stream, steps=8, images=2)
    assert stream.files() == server.generate(**request).files()
    assert "chunk" in stream.kinds


@pytest.mark.parametrize("after", [0, 1, 2, 7, 19, 24])
def test_a_job_whose_replica_is_lost_begins_again_at_another(
    edge: RunningServer, here: ReplicasHere, after: int
) -> None:
    """`after` so many of 25 replies; the seed is one that the lost replica drew, if it told."""
    here.called.clear()
    here.lost_after = [after]
    stream = edge.generate(**SAME)
    check_whole(stream, steps=8, images=2)
    assert [call.method for _, call in here.called] == ["/darkroom.v1.ImageService/Generate"] * 2
    assert here.called[0][0] != here.called[1][0]
    told = [event.sequence for event in stream.events if event.queued.restarts == 1]
    assert (RUN_SEQUENCES in told) == (after > 1)  # else the client had seen nothing of it
    assert edge.generate(**SAME, seed=stream.of("accepted")[0].seeds[0]).files() == stream.files()
    wait_for(lambda: here.left() == 0)


def test_a_job_that_loses_every_replica_fails(edge: RunningServer, here: ReplicasHere) -> None:
    here.lost_after = [3] * (MAX_RESTARTS + 1)
    failed = refused(lambda: edge.generate(**SAME))
    assert (failed.code, failed.reason) == (StatusCode.INTERNAL, "REPLICAS_LOST")
    assert here.lost_after == []


def test_a_kept_job_outlives_client_and_replica(edge: RunningServer, here: ReplicasHere) -> None:
    here.lost_after = [9]
    stream = edge.start(generate_request(**SAME, request_id="kept", disconnect_policy=KEEP))
    stream.read_until("step")
    stream.call.cancel()
    watched = Stream(edge.images.Watch(WatchRequest(request_id="kept"))).read()
    check_whole(watched, steps=8, images=2)
    assert here.lost_after == []


def test_refusals_come_as_they_are(edge: RunningServer, server: RunningServer) -> None:
    for wrong in ({"width": 13, "num_images": 99}, {"model": "nope"}, {"request_id": "?"}, {"disconnect_policy": 99}):
        one, other = (refused(lambda to=to, wrong=wrong: to.generate(**wrong)) for to in (edge, server))
        assert one.code == other.code
        assert (one.reason, one.paths) == (other.reason, other.paths)


def test_replicas_say_how_much_there_is_to_do(edge: RunningServer, here: ReplicasHere) -> None:
    def said(name: str) -> list[float]:
        return [each.load()[name] for each in here.replicas.values()]

    assert [said(WAITING), said(TAKEN)] == [[0, 0], [0, 0]]
    streams = [edge.start(generate_request(**LONG)) for _ in range(50)]
    wait_for(lambda: said(TAKEN) == [1, 1] and min(said(WAITING)) > 0, seconds=60)
    for stream in streams:
        stream.call.cancel()
    wait_for(lambda: [said(WAITING), said(TAKEN)] == [[0, 0], [0, 0]])


def by_leaving(edge: RunningServer, stream: Stream) -> None:
    stream.call.cancel()


def by_request(edge: RunningServer, stream: Stream) -> None:
    assert edge.images.Cancel(CancelRequest(request_id=stream.events[0].request_id)).cancelled
    with pytest.raises(grpc.RpcError) as caught:
        stream.read()
    assert caught.value.code() is StatusCode.CANCELLED


@pytest.mark.parametrize("leave", [by_leaving, by_request])
def test_a_cancel_reaches_the_replica(
    edge: RunningServer, here: ReplicasHere, leave: Callable[[RunningServer, Stream], None]
) -> None:
    stream = edge.start(generate_request(**LONG))
    stream.read_until("step")
    assert here.left() > 0
    (job,) = [each for each in edge.images.ListJobs(ListJobsRequest()).jobs if not each.kept]
    assert (job.model, job.step_count, job.state) == ("tiny", 400, JOB_STATE_RUNNING)
    leave(edge, stream)
    wait_for(lambda: here.left() == 0 and not edge.app.backend.jobs.active)  # the edge's may end after the replica's


def test_a_lease_ends_what_the_edge_no_longer_wants(edge: RunningServer, here: ReplicasHere) -> None:
    stream = edge.start(generate_request(**LONG, seed=1, width=64, height=64, num_images=4), timeout=3600)
    stream.read_until("step")
    here.silent = True
    stream.call.cancel()
    try:
        wait_for(lambda: here.left() == 0, seconds=4 * LEASE_SECONDS)
    finally:
        here.silent = False


def test_a_replica_that_is_to_stop_ends_its_jobs_first(
    edge: RunningServer, here: ReplicasHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("darkroom_server.cluster.replica.LEASE_SECONDS", 0.01)
    monkeypatch.setattr("darkroom_server.cluster.replica.RENEW_SECONDS", 0.01)
    here.silent = here.stopping = True
    try:
        stream = edge.generate(**LONG)
    finally:
        here.silent = here.stopping = False
    check_whole(stream, steps=400, images=1)
    assert max(event.queued.restarts for event in stream.events) == 0


def test_preprocess_and_the_catalog_are_answered(edge: RunningServer, server: RunningServer) -> None:
    import numpy as np

    picture = png(np.tile(np.arange(64, dtype=np.uint8)[:, None, None] * 3, (1, 64, 3)))
    request = PreprocessRequest(image=picture, preprocessor="canny")
    one, other = (Stream(each.images.Preprocess(request)).read() for each in (edge, server))
    assert one.of("control_image")[0].total_bytes == other.of("control_image")[0].total_bytes
    (model,) = edge.catalog.ListModels(catalog_service_pb2.ListModelsRequest()).models
    assert (model.name, model.residency) == ("tiny", catalog_service_pb2.RESIDENCY_RESIDENT)
    asked = catalog_service_pb2.ListSchedulersRequest()
    assert edge.catalog.ListSchedulers(asked) == server.catalog.ListSchedulers(asked)


def where(model: catalog_service_pb2.Model) -> dict[str, bool]:
    """The replicas, and whether it is in memory there."""
    return {each.replica: each.residency == catalog_service_pb2.RESIDENCY_RESIDENT for each in model.replicas}


def test_a_model_leaves_all_replicas_and_comes_back(edge: RunningServer, here: ReplicasHere) -> None:
    freed = edge.catalog.UnloadModel(catalog_service_pb2.UnloadModelRequest(model="tiny")).freed_bytes
    assert freed > 0
    assert [list(each.residence().models) for each in here.replicas.values()] == [[], []]
    *_, last = edge.catalog.LoadModel(catalog_service_pb2.LoadModelRequest(model="tiny"))
    assert last.model.residency == catalog_service_pb2.RESIDENCY_RESIDENT
    assert sorted(where(last.model).values()) == [False, True]
    assert sorted(list(each.residence().models) for each in here.replicas.values()) == [[], ["tiny"]]


def test_a_model_is_loaded_and_unloaded_where_it_is_asked_for(edge: RunningServer, here: ReplicasHere) -> None:
    first, second = sorted(here.replicas)
    unload, load = catalog_service_pb2.UnloadModelRequest, catalog_service_pb2.LoadModelRequest
    edge.catalog.UnloadModel(unload(model="tiny"))
    *progress, last = edge.catalog.LoadModel(load(model="tiny", replicas=[second]))
    assert progress
    assert all(each.HasField("loading") for each in progress)
    assert where(last.model) == {first: False, second: True}
    *_, last = edge.catalog.LoadModel(load(model="tiny", replicas=[first, second]))
    assert where(last.model) == {first: True, second: True}
    one = edge.catalog.UnloadModel(unload(model="tiny", replicas=[first])).freed_bytes
    (model,) = edge.catalog.ListModels(catalog_service_pb2.ListModelsRequest()).models
    assert where(model) == {first: False, second: True}
    assert model.residency == catalog_service_pb2.RESIDENCY_RESIDENT
    assert edge.catalog.UnloadModel(unload(model="tiny")).freed_bytes == one
    assert edge.catalog.UnloadModel(unload(model="tiny", replicas=[second])).freed_bytes == 0


def test_replicas_that_are_not_there_are_refused(edge: RunningServer, server: RunningServer) -> None:
    unload, load = catalog_service_pb2.UnloadModelRequest, catalog_service_pb2.LoadModelRequest
    for to, path in ((edge, "replicas[1]"), (server, "replicas")):
        for call in (
            lambda to=to: to.catalog.UnloadModel(unload(model="tiny", replicas=["replica-1", "nope"])),
            lambda to=to: list(to.catalog.LoadModel(load(model="tiny", replicas=["replica-1", "nope"]))),
        ):
            failed = refused(call)
            assert (failed.code, failed.paths) == (StatusCode.INVALID_ARGUMENT, {path})


def test_a_job_that_begins_again_has_what_its_preset_said(edge: RunningServer, here: ReplicasHere) -> None:
    here.lost_after = [5]
    stream = edge.generate(prompt="x", preset="fast")
    assert stream.of("queued")[-1].restarts == 1
    assert [step.step for step in stream.of("step")] == [1, 2, 3]


def test_all_replicas_look_into_their_folders(edge: RunningServer, lora_folder: Path, tiny_model: Path) -> None:
    save_lora(lora_folder / "ink.safetensors", tiny_model, seed=1)
    (change,) = edge.catalog.RescanAssets(catalog_service_pb2.RescanAssetsRequest()).changes
    assert (change.name, change.what) == ("ink", catalog_service_pb2.ASSET_CHANGE_KIND_ADDED)
    for _ in range(2):
        made = edge.generate(prompt="x", num_inference_steps=1, loras=[parameters_pb2.LoraSpec(name="ink")])
        assert made.kinds[-1] == "completed"
