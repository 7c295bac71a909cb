"""Clients share the device, deadlines that cannot be met are refused, and jobs are told when they will be done."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode

from darkroom.v1 import catalog_service_pb2 as catalog_pb
from darkroom.v1 import image_service_pb2 as image_pb
from darkroom.v1 import image_service_pb2_grpc, parameters_pb2
from tests.failing import FailingServer
from tests.support import RunningServer, Stream, alike, generate_request, refused, settle

ROWS = 4  # of a batch: two images
LONG = 900  # steps: more than a test has time for


class Client:
    """Another client: it has a connection of its own, and perhaps a token."""

    def __init__(self, server: RunningServer, token: str = "") -> None:
        self.channel = grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)])
        self.images = image_service_pb2_grpc.ImageServiceStub(self.channel)
        self._metadata = [("authorization", f"Bearer {token}")] if token else []
        self._streams: list[Stream] = []  # gRPC cancels calls that nobody holds

    def start(self, timeout: float | None = None, **parameters: Any) -> Stream:
        request = generate_request(**{"width": 64, "height": 64, "seed": 1, "scheduler": "ddim", **parameters})
        self._streams.append(Stream(self.images.Generate(request, timeout=timeout, metadata=self._metadata)))
        return self._streams[-1]

    def jobs(self) -> list[Any]:
        return list(self.images.ListJobs(image_pb.ListJobsRequest(), metadata=self._metadata).jobs)


@pytest.fixture(scope="module")
def small(tiny_model: Path) -> Iterator[RunningServer]:
    """A server of small batches whose speed has been measured."""
    limits = {"max_batch_rows": ROWS, "max_inference_steps": LONG}
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], limits=limits) as server:
        first = server.generate(num_inference_steps=1, width=64, height=64, scheduler="ddim")
        assert not first.of("accepted")[0].HasField("estimated_end_seconds"), "nothing has been measured"
        for images in (1, 2):
            server.generate(num_inference_steps=20, width=64, height=64, num_images=images, scheduler="ddim")
        yield server


@pytest.fixture
def clients(small: RunningServer) -> Iterator[tuple[Client, Client]]:
    """Two, and afterwards nothing is left of theirs."""
    made = Client(small), Client(small)
    yield made
    for each in made:
        each.channel.close()
    settle(small)


def flood(client: Client, count: int, num_images: int = 1) -> list[Stream]:
    """Jobs of one client, of which as many run as fit, and the others wait."""
    streams: list[Stream] = []
    for number in range(count):
        streams.append(client.start(num_inference_steps=LONG, num_images=num_images))
        streams[-1].read_until("step" if number * num_images < ROWS // 2 else "queued")
    return streams


# ---------------------------------------------------------------------------------------------------------- fairness


@pytest.mark.parametrize("size", [64, 32], ids=["the same batch", "another batch"])
def test_a_flood_does_not_keep_another_waiting(small: RunningServer, clients: tuple[Client, Client], size: int) -> None:
    """First come, first served, it would begin after hundreds of steps."""
    flooding, light = clients
    flood(flooding, 8)
    done = light.start(num_inference_steps=8, width=size, height=size).read()
    assert done.kinds[-1] == "completed"
    states = [job.state for job in flooding.jobs()]
    assert states.count(image_pb.JOB_STATE_RUNNING) >= 2
    assert len(states) == 8
    assert max(job.step for job in flooding.jobs()) < LONG


def test_a_sample_whose_row_another_had_goes_on(small: RunningServer, clients: tuple[Client, Client]) -> None:
    """It makes the picture that it makes undisturbed, up to the rounding of other company."""
    flooding, light = clients
    undisturbed = flooding.start(num_inference_steps=8, seed=9).read()
    with small.paused():
        streams = [flooding.start(num_inference_steps=8, seed=seed) for seed in (9, 10, 11)]
        others = [light.start(num_inference_steps=3, seed=seed) for seed in range(2)]
        for stream in (*streams, *others):
            stream.read_until("accepted")
    for stream in (*streams, *others):
        assert stream.read().kinds[-1] == "completed"
        steps = [step.step for step in stream.of("step")]
        assert steps == sorted(set(steps))
    assert alike(streams[0].pixels[0], undisturbed.pixels[0])


def test_a_clients_own_jobs_begin_by_their_priority(tiny_model: Path) -> None:
    with FailingServer(tiny_model, limits={"max_batch_rows": 2}) as server:
        with server.gate.closed():
            first = server.patient(num_inference_steps=2)
            priorities = ("LOW", "NORMAL", "HIGH")
            waiting = []
            for name in priorities:
                value = parameters_pb2.Priority.Value(f"PRIORITY_{name}")
                waiting.append(server.start(server.request(name, num_inference_steps=6, priority=value)))
                waiting[-1].read_until("accepted")
            listed = server.images.ListJobs(image_pb.ListJobsRequest()).jobs
            assert {job.prompt: parameters_pb2.Priority.Name(job.priority) for job in listed} == {
                "patient": "PRIORITY_NORMAL",
                **{name: f"PRIORITY_{name}" for name in priorities},
            }
        for stream in (first, *waiting):
            assert stream.read().kinds[-1] == "completed"
        low, normal, high = (stream.of("completed")[0].timings.queue_seconds for stream in waiting)
        assert high < normal < low
        settle(server)


# ------------------------------------------------------------------------------------------------- who may have what


def test_one_client_cannot_fill_the_queue_of_all(tiny_model: Path) -> None:
    limits = {"max_queued_jobs": 4, "max_batch_rows": 2, "max_inference_steps": LONG}
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], limits=limits) as server:
        one, other = Client(server), Client(server)
        flood(one, 1)
        for _ in range(2):  # half of the queue
            one.start(num_inference_steps=LONG).read_until("accepted")
        failed = refused(lambda: one.start().read())
        assert (failed.code, failed.reason) == (StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert "of this client" in failed.message
        assert failed.retry
        assert int(failed.trailers["grpc-retry-pushback-ms"]) == round(failed.retry * 1000)
        assert other.start(num_inference_steps=2).read().kinds[-1] == "completed"
        info = server.catalog.GetServerInfo(catalog_pb.GetServerInfoRequest())
        assert info.limits.max_queued_jobs_per_client == 2
        for client in (one, other):
            client.channel.close()
        settle(server)


def test_a_high_priority_is_an_operators(tiny_model: Path) -> None:
    tokens = [
        {"name": role, "role": role, "sha256": hashlib.sha256(role.encode()).hexdigest()}
        for role in ("user", "operator")
    ]
    high: Any = parameters_pb2.PRIORITY_HIGH
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], tokens=tokens) as server:
        user, operator = Client(server, "user"), Client(server, "operator")
        failed = refused(lambda: user.start(priority=high).read())
        assert (failed.code, failed.reason) == (StatusCode.PERMISSION_DENIED, "OPERATOR_TOKEN_REQUIRED")
        assert user.start(priority=parameters_pb2.PRIORITY_LOW, num_inference_steps=1).read().kinds[-1] == "completed"
        assert operator.start(priority=high, num_inference_steps=1).read().kinds[-1] == "completed"
        for client in (user, operator):
            client.channel.close()


def test_an_unknown_priority_is_refused(small: RunningServer) -> None:
    unknown: Any = 17
    failed = refused(lambda: small.generate(priority=unknown))
    assert (failed.code, failed.paths) == (StatusCode.INVALID_ARGUMENT, {"priority"})


# --------------------------------------------------------------------------------------------- estimates, deadlines


def test_jobs_are_told_when_they_will_be_done(small: RunningServer, clients: tuple[Client, Client]) -> None:
    client, _ = clients
    alone = client.start(num_inference_steps=4).read().of("accepted")[0]
    assert alone.estimated_end_seconds > alone.estimated_wait_seconds >= 0.0
    flood(client, 4)
    waiting = client.start(num_inference_steps=4)
    accepted, queued = waiting.read_until("accepted"), waiting.read_until("queued")
    for event in (accepted, queued):
        assert event.estimated_end_seconds > event.estimated_wait_seconds > alone.estimated_end_seconds
    listed = next(job for job in client.jobs() if job.step_count == 4)
    assert listed.create_time.seconds <= listed.estimated_start_time.seconds <= listed.estimated_end_time.seconds


def test_a_deadline_that_no_queue_could_meet(small: RunningServer, clients: tuple[Client, Client]) -> None:
    client, _ = clients
    failed = refused(lambda: client.start(timeout=2.0, num_inference_steps=LONG, num_images=16).read())
    assert (failed.code, failed.reason) == (StatusCode.FAILED_PRECONDITION, "DEADLINE_TOO_SHORT")
    assert failed.retry is None
    assert "the job would take about" in failed.message


def test_a_deadline_that_the_queue_cannot_meet(small: RunningServer, clients: tuple[Client, Client]) -> None:
    """Another client has no queue before it, and is let in."""
    client, other = clients
    flood(client, 10, num_images=16)
    failed = refused(lambda: client.start(timeout=8.0, num_inference_steps=2).read())
    assert (failed.code, failed.reason) == (StatusCode.RESOURCE_EXHAUSTED, "DEADLINE_UNREACHABLE")
    assert failed.retry
    assert int(failed.trailers["grpc-retry-pushback-ms"]) == round(failed.retry * 1000)
    assert "and its deadline is in" in failed.message
    assert other.start(timeout=8.0, num_inference_steps=2).read().kinds[-1] == "completed"
