"""GetServerLoad, and what ListJobs says of jobs in batches."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from darkroom.v1 import catalog_service_pb2 as pb
from darkroom.v1 import parameters_pb2
from darkroom.v1.image_service_pb2 import JOB_STATE_QUEUED, JOB_STATE_RUNNING, ListJobsRequest
from darkroom_server.api.load import summed
from tests.darkroom_server.cluster.conftest import ReplicasHere
from tests.failing import FailingServer
from tests.support import RunningServer, Stream, generate_request, settle

KEEP = parameters_pb2.DISCONNECT_POLICY_KEEP


@pytest.fixture
def held(tiny_model: Path) -> Iterator[FailingServer]:
    """A server whose jobs can be held in their midst."""
    with FailingServer(tiny_model, memory_budget="1 GiB") as server:
        yield server


def load_of(server: RunningServer) -> pb.GetServerLoadResponse:
    return server.catalog.GetServerLoad(pb.GetServerLoadRequest(), timeout=20)


def until(true: Callable[[], bool]) -> None:
    """The test's own time limit ends this."""
    while not true():
        pass


def test_a_server_at_rest(held: FailingServer) -> None:
    load = load_of(held)
    assert [load.queued_jobs, load.running_jobs, load.waiting_images, load.active_images, load.open_streams] == [0] * 5
    assert not load.batches
    (model,) = load.weights
    assert (model.kind, model.name, model.model, model.users) == ("model", "tiny", "", 0)
    assert model.residency == pb.RESIDENCY_RESIDENT
    assert load.device_bytes == model.bytes > 0
    assert (load.parked_bytes, load.memory_budget_bytes) == (0, 2**30)


def test_a_server_at_work(held: FailingServer) -> None:
    with held.gate.closed():
        patient = held.patient(num_images=2)
        until(lambda: held.app.engine.ticks == 2)  # which waits at the gate
        queued = held.start(generate_request(num_inference_steps=2, scheduler="ddim"))
        queued.read_until("accepted")
        until(lambda: load_of(held).weights[0].users == 2)
        load = load_of(held)
        assert (load.queued_jobs, load.running_jobs, load.active_images, load.open_streams) == (1, 1, 2, 2)
        assert [(each.model, each.size, each.steps, each.rows) for each in load.batches] == [("tiny", "64", 1, 4)]
        assert load.batches[0].step_seconds > 0
    patient.read()
    queued.read()
    settle(held)
    (batch,) = load_of(held).batches
    assert batch.rows == 2 * 2 * 6 + 2 * 2
    assert load_of(held).open_streams == 0


def test_jobs_say_how_they_are_stepped(held: FailingServer) -> None:
    with held.gate.closed():
        patient = held.patient(num_images=2, width=64)
        until(lambda: held.app.engine.ticks == 2)
        waiting = held.start(generate_request(num_inference_steps=2))
        waiting.read_until("accepted")
        later, first = held.images.ListJobs(ListJobsRequest()).jobs
        assert (first.state, first.width, first.height) == (JOB_STATE_RUNNING, 64, 32)
        assert (first.step, first.batch_rows) == (1, 4)
        assert first.step_seconds > 0
        assert (later.state, later.batch_rows, later.step_seconds) == (JOB_STATE_QUEUED, 0, 0)
    patient.read()
    waiting.read()


def test_jobs_that_have_ended_can_be_left_out(held: FailingServer) -> None:
    held.start(generate_request(request_id="done", num_inference_steps=1, disconnect_policy=KEEP)).read()
    with held.gate.closed():
        patient = held.patient(request_id="patient")
        found = {only: held.images.ListJobs(ListJobsRequest(active_only=only)).jobs for only in (False, True)}
    patient.read()
    assert [each.request_id for each in found[False]] == ["patient", "done"]
    assert [each.request_id for each in found[True]] == ["patient"]


def test_an_unloaded_model_is_left_out(held: FailingServer) -> None:
    held.catalog.UnloadModel(pb.UnloadModelRequest(model="tiny"))
    load = load_of(held)
    assert (list(load.weights), load.device_bytes) == ([], 0)


def test_a_parked_model(tiny_model: Path) -> None:
    models = [{"name": "tiny", "path": tiny_model}]
    with RunningServer(models=models, park_budget="1 GiB") as server:
        server.run(server.app.residency.relieve())
        server.run(asyncio.sleep(0))
        load = load_of(server)
    assert [each.residency for each in load.weights] == [pb.RESIDENCY_PARKED]
    assert load.parked_bytes == load.weights[0].bytes > 0
    assert load.device_bytes == 0


def test_of_a_cluster(tiny_model: Path) -> None:
    models, here = [{"name": "tiny", "path": tiny_model}], ReplicasHere(2)
    with RunningServer(replicas=here.open, models=models) as edge:
        for _ in range(2):  # by one replica each
            edge.generate(num_inference_steps=3, scheduler="ddim")
        until(lambda: not load_of(edge).weights[0].users)
        load = load_of(edge)
        stream: Stream = edge.start(generate_request(num_inference_steps=400))
        stream.read_until("step")
        busy = load_of(edge)
        (job,) = edge.images.ListJobs(ListJobsRequest()).jobs
        stream.call.cancel()
    assert [(each.steps, each.rows) for each in load.batches] == [(6, 12)]
    assert load.open_streams == 0
    assert not load.HasField("memory_budget_bytes")
    assert [(each.name, each.users) for each in load.weights] == [("tiny", 0)]
    assert load.weights[0].bytes == load.device_bytes
    assert (busy.running_jobs, busy.open_streams) == (1, 1)
    assert (job.batch_rows, job.width) == (2, 32)
    assert job.step_seconds > 0


def test_budgets_of_replicas_add_up() -> None:
    one = pb.GetServerLoadResponse(memory_budget_bytes=0, queued_jobs=1)
    assert summed([one, one]) == pb.GetServerLoadResponse(memory_budget_bytes=0, queued_jobs=2)
