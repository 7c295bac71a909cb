"""Edges that share the log of kept jobs: what one began is found, ended and cancelled through another."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from grpc import RpcError, StatusCode

from darkroom.v1 import image_service_pb2 as pb
from darkroom_server.api import keeper
from darkroom_server.errors import JobLogUnavailable
from darkroom_server.jobs import log_postgres
from tests.darkroom_server.api.test_kept_jobs import kept, watch
from tests.darkroom_server.cluster.conftest import ReplicasHere
from tests.postgres import empty, postgres
from tests.support import RunningServer, Stream, refused, wait_for

STEPS = 80
LONG: dict[str, Any] = {"num_inference_steps": STEPS, "seed": 7}
Open = Callable[[], contextlib.AbstractContextManager[RunningServer]]


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture(scope="module")
def open_edge(database: str, tiny_model: Path) -> Open:
    """What opens an edge with a replica of its own."""
    models, limits = [{"name": "tiny", "path": tiny_model}], {"chunk_bytes": 1024}
    return lambda: RunningServer(replicas=ReplicasHere(1).open, models=models, limits=limits, job_log=database)


@pytest.fixture(scope="module")
def edges(open_edge: Open, database: str) -> Iterator[tuple[RunningServer, RunningServer]]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(log_postgres, "LEASE_SECONDS", 2.0)
        patched.setattr(keeper, "LOOK_SECONDS", 0.2)
        patched.setattr(keeper, "SWEEP_SECONDS", 0.2)
        with open_edge() as one, open_edge() as other:
            yield one, other
    empty(database)


def state(edge: RunningServer, request_id: str) -> Any:
    return edge.images.GetJob(pb.GetJobRequest(request_id=request_id)).job.state


def running(one: RunningServer, other: RunningServer, request_id: str, **asked: Any) -> tuple[Stream, Stream]:
    """A job that runs at one edge, and a watcher of it at another."""
    stream = one.start(kept(request_id, **asked))
    stream.read_until("step")
    watched = watch(other, request_id)
    watched.read_until("accepted")
    return stream, watched


def check_ended(stream: Stream, seed: int, server: RunningServer, steps: int) -> None:
    """A stream that is whole, with the picture of a server that nothing disturbs."""
    sequences = [event.sequence for event in stream.events]
    assert sequences == sorted(set(sequences))
    assert [stream.kinds[0], stream.kinds[-1]] == ["accepted", "completed"]
    assert [stream.kinds.count("accepted"), stream.kinds.count("image")] == [1, 1]
    alone = server.generate(prompt="x", num_inference_steps=steps, seed=seed, deterministic=True)
    assert stream.files() == alone.files()


def test_a_job_of_one_edge_is_found_through_the_other(
    edges: tuple[RunningServer, RunningServer], server: RunningServer
) -> None:
    one, other = edges
    stream = one.start(kept("found", seed=5)).read()
    check_ended(watch(other, "found").read(), 5, server, steps=4)
    assert state(other, "found") == pb.JOB_STATE_COMPLETED
    assert other.start(kept("found", seed=5)).read().files() == stream.files()
    taken = refused(lambda: other.start(kept("found", seed=6)).read())
    assert (taken.code, taken.reason) == (StatusCode.ALREADY_EXISTS, "REQUEST_ID_IN_USE")


def test_a_job_that_runs_at_one_edge_is_watched_and_cancelled_through_the_other(
    edges: tuple[RunningServer, RunningServer],
) -> None:
    one, other = edges
    stream, watched = running(one, other, "cancelled", num_inference_steps=400)
    wait_for(lambda: state(other, "cancelled") == pb.JOB_STATE_RUNNING)
    listed = other.images.ListJobs(pb.ListJobsRequest(active_only=True)).jobs
    assert [each.request_id for each in listed] == ["cancelled"]
    assert other.images.Cancel(pb.CancelRequest(request_id="cancelled")).cancelled
    for each in (stream, watched):
        with pytest.raises(RpcError) as caught:
            each.read()
        assert caught.value.code() is StatusCode.CANCELLED
    assert state(other, "cancelled") == pb.JOB_STATE_CANCELLED
    assert not other.images.Cancel(pb.CancelRequest(request_id="cancelled")).cancelled


def test_the_jobs_of_an_edge_that_is_gone_go_on_at_another(
    edges: tuple[RunningServer, RunningServer], server: RunningServer
) -> None:
    """To the other it is gone; it was only stopped for a while, and the watchers that it has see the end, too."""
    one, other = edges
    stream, watched = running(one, other, "gone", **LONG)
    with one.frozen():
        check_ended(watched.read(), 7, server, steps=STEPS)
        assert state(other, "gone") == pb.JOB_STATE_COMPLETED
        assert watched.events[-1].sequence > 2**32
    check_ended(stream.read(), 7, server, steps=STEPS)
    check_ended(watch(one, "gone").read(), 7, server, steps=STEPS)


def test_a_picture_that_comes_late_is_not_shown(
    edges: tuple[RunningServer, RunningServer], database: str, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another edge has taken the job up, of which this one has not heard: it makes the picture again."""
    one, other = edges

    async def blind(*_: Any, **__: Any) -> None:
        raise JobLogUnavailable("it takes too long")

    stream = one.start(kept("late", **LONG))
    stream.read_until("step")
    monkeypatch.setattr(one.app.keeper._log, "look", blind)
    with psycopg.connect(database, options="-c search_path=darkroom") as connection:
        take = "UPDATE jobs SET server = %s, runs = 2, changed = DEFAULT WHERE request_id = 'late'"
        connection.execute(take, (other.app.keeper._log.server,))
    wait_for(lambda: one.app.keeper.find("", "late").elsewhere)
    monkeypatch.undo()
    check_ended(stream.read(), 7, server, steps=STEPS)


def test_a_job_that_is_gone_from_the_log_ends_for_its_watchers(
    edges: tuple[RunningServer, RunningServer], database: str
) -> None:
    """Its edge has forgotten it, or an operator has deleted it, before the other had heard of its end."""
    one, other = edges
    _, watched = running(one, other, "forgotten", **LONG)
    with one.frozen():
        with psycopg.connect(database, options="-c search_path=darkroom") as connection:
            connection.execute("DELETE FROM jobs WHERE request_id = 'forgotten'")
        gone = refused(watched.read)
    assert (gone.code, gone.reason) == (StatusCode.NOT_FOUND, "REQUEST_NOT_FOUND")
    assert refused(lambda: watch(other, "forgotten").read()).code is StatusCode.NOT_FOUND


def test_the_jobs_of_an_edge_that_stops_go_on_at_once(
    edges: tuple[RunningServer, RunningServer], open_edge: Open, server: RunningServer
) -> None:
    _, other = edges
    with open_edge() as third:
        stream = third.start(kept("stopped", **LONG))
        stream.read_until("step")
    check_ended(watch(other, "stopped").read(), 7, server, steps=STEPS)


def test_a_job_that_cannot_be_read_when_it_is_taken_up_is_tried_again(
    edges: tuple[RunningServer, RunningServer],
    open_edge: Open,
    server: RunningServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, other = edges
    job_log, failures = other.app.keeper._log, [JobLogUnavailable("it takes too long")] * 5
    first_event = job_log.first_event

    async def failing(job: int) -> tuple[bytes, int]:
        if failures:
            raise failures.pop()
        found: tuple[bytes, int] = await first_event(job)
        return found

    with open_edge() as third:
        _, watched = running(third, other, "unread", **LONG)
        monkeypatch.setattr(job_log, "first_event", failing)
    check_ended(watched.read(), 7, server, steps=STEPS)
    assert not failures
