"""Kept jobs: they go on without their clients, are watched by many, and are asked for again by their id."""

import hashlib
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode

from darkroom.v1 import image_service_pb2 as pb
from darkroom.v1 import parameters_pb2
from tests.killable import many
from tests.support import RunningServer, Stream, generate_request, refused, settle
from tests.watching import Watched, check

KEEP = parameters_pb2.DISCONNECT_POLICY_KEEP
TOKENS = {"ann": "user", "bob": "user", "eve": "operator"}
EVENTS = int(many("EVENTS", 1_600))  # that watchers read together
WATCHERS = 8 if EVENTS < 10_000 else 100
REPLACED = ("preview", "queued", "loading")


def tokens() -> list[dict[str, str]]:
    return [
        {"name": name, "role": role, "sha256": hashlib.sha256(name.encode()).hexdigest()}
        for name, role in TOKENS.items()
    ]


@pytest.fixture(scope="module", params=["memory", "log"])
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, request: Any) -> Iterator[RunningServer]:
    """With the log of jobs, and without."""
    folder = tmp_path_factory.mktemp("state") if request.param == "log" else None
    limits = {"chunk_bytes": 1024}
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], state_dir=folder, limits=limits) as running:
        yield running


@pytest.fixture(scope="module")
def shared_server(tiny_model: Path) -> Iterator[RunningServer]:
    """With the tokens of several clients."""
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], tokens=tokens()) as running:
        yield running


@pytest.fixture
def small_server(tiny_model: Path) -> Iterator[RunningServer]:
    """With little room for kept jobs."""
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], max_kept_bytes=2**20) as running:
        yield running


def kept(request_id: str, **parameters: Any) -> pb.GenerateRequest:
    given = {"prompt": "x", "num_inference_steps": 4, "deterministic": True, **parameters}
    return generate_request(request_id=request_id, disconnect_policy=KEEP, **given)


def watch(server: RunningServer, request_id: str, after: int = 0, token: str = "") -> Stream:
    metadata = [("authorization", f"Bearer {token}")] if token else []
    request = pb.WatchRequest(request_id=request_id, after_sequence=after)
    return Stream(server.images.Watch(request, timeout=3600, metadata=metadata))


def job(server: RunningServer, request_id: str) -> pb.Job:
    return server.images.GetJob(pb.GetJobRequest(request_id=request_id)).job


def test_a_job_goes_on_without_its_client(server: RunningServer) -> None:
    stream = server.start(kept("alone", num_inference_steps=30))
    stream.read_until("step")
    stream.call.cancel()
    watched = watch(server, "alone").read()
    assert watched.kinds[0] == "accepted"
    assert [each.step for each in watched.of("step")] == list(range(1, 31))
    assert watched.kinds[-1] == "completed"
    seed = watched.of("accepted")[0].seeds[0]
    same = server.generate(prompt="x", num_inference_steps=30, deterministic=True, seed=seed)
    assert watched.files() == same.files()


def test_the_same_request_is_the_same_job(server: RunningServer) -> None:
    with server.paused():
        streams = [server.start(kept("same")) for _ in range(3)]
        for stream in streams:
            stream.read_until("accepted")
        assert server.app.jobs.active_jobs == 1
    again = [*(stream.read() for stream in streams), server.start(kept("same")).read()]
    assert len({str(stream.of("accepted")) for stream in again}) == 1
    assert all(stream.files() == again[0].files() for stream in again)


@pytest.mark.parametrize("while_it_runs", [True, False])
@pytest.mark.parametrize("changed", [{"prompt": "y"}, {"disconnect_policy": 0}, {"seed": 1}])
def test_another_request_of_the_same_id_is_refused(
    server: RunningServer, while_it_runs: bool, changed: dict[str, Any]
) -> None:
    request_id = f"other-{while_it_runs}-{''.join(changed)}"
    stream = server.start(kept(request_id, num_inference_steps=40 if while_it_runs else 1))
    stream.read_until("step" if while_it_runs else "completed")
    other = kept(request_id)
    for name, value in changed.items():
        setattr(other if name == "disconnect_policy" else other.parameters, name, value)
    failed = refused(lambda: server.start(other).read())
    assert (failed.code, failed.reason) == (StatusCode.ALREADY_EXISTS, "REQUEST_ID_IN_USE")
    assert stream.read().kinds[-1] == "completed"


def test_the_id_of_a_job_that_is_not_kept_is_refused(server: RunningServer) -> None:
    stream = server.start(generate_request(request_id="loose", prompt="x", num_inference_steps=50))
    stream.read_until("step")
    failed = refused(lambda: server.start(kept("loose")).read())
    assert (failed.code, failed.reason) == (StatusCode.ALREADY_EXISTS, "REQUEST_ID_IN_USE")
    assert refused(watch(server, "loose").read).reason == "REQUEST_NOT_FOUND"
    stream.call.cancel()


def test_what_is_refused_is_not_kept(server: RunningServer) -> None:
    failed = refused(lambda: server.start(kept("bad", num_images=10_000)).read())
    assert failed.paths == {"parameters.num_images"}
    assert refused(watch(server, "bad").read).reason == "REQUEST_NOT_FOUND"
    assert server.start(kept("bad")).read().kinds[-1] == "completed"
    assert refused(lambda: server.start(kept("no id!")).read()).paths == {"request_id"}


def test_a_watch_resumes_anywhere(server: RunningServer) -> None:
    whole = server.start(kept("resumed", width=64, height=64)).read()
    assert "chunk" in whole.kinds
    kept_events = watch(server, "resumed").read().events
    for place, event in enumerate(kept_events):
        rest = watch(server, "resumed", event.sequence).read().events
        assert rest == kept_events[place + 1 :]
    assert watch(server, "resumed", 10**9).read().events == []
    failed = refused(watch(server, "resumed", -1).read)
    assert (failed.code, failed.paths) == (StatusCode.INVALID_ARGUMENT, {"after_sequence"})


def test_cancel_ends_it_for_all(server: RunningServer) -> None:
    with server.paused():
        streams = [server.start(kept("cancelled", num_inference_steps=300)) for _ in range(2)]
        streams.append(watch(server, "cancelled"))
        for stream in streams:
            stream.read_until("accepted")
        assert server.images.Cancel(pb.CancelRequest(request_id="cancelled")).cancelled
    for stream in (*streams, watch(server, "cancelled"), server.start(kept("cancelled", num_inference_steps=300))):
        assert refused(stream.read).code is StatusCode.CANCELLED
    assert not server.images.Cancel(pb.CancelRequest(request_id="cancelled")).cancelled
    assert job(server, "cancelled").state == pb.JOB_STATE_CANCELLED
    settle(server)


def test_the_deadline_of_the_call_is_that_of_the_job(server: RunningServer) -> None:
    with server.paused():
        stream = server.start(kept("late"), timeout=0.5)
        stream.read_until("accepted")
        assert refused(stream.read).code is StatusCode.DEADLINE_EXCEEDED
        assert refused(watch(server, "late").read).code is StatusCode.DEADLINE_EXCEEDED


def test_jobs_are_listed_with_their_states(server: RunningServer) -> None:
    server.start(kept("done", prompt="a star", num_images=2)).read()
    with server.paused():
        loose = server.start(generate_request(request_id="listed", prompt="a sun"))
        loose.read_until("accepted")
        waiting = server.start(kept("waiting"))
        waiting.read_until("accepted")
        jobs = {each.request_id: each for each in server.images.ListJobs(pb.ListJobsRequest()).jobs}
    assert list(jobs)[:3] == ["waiting", "listed", "done"]
    done, listed = jobs["done"], jobs["listed"]
    assert (done.state, done.kept, done.prompt, done.images_done) == (pb.JOB_STATE_COMPLETED, True, "a star", 2)
    assert (done.task, done.model, done.num_images, done.step_count, done.step) == ("txt2img", "tiny", 2, 4, 4)
    times = [done.create_time, done.start_time, done.end_time, done.expire_time]
    assert times == sorted(times, key=lambda each: each.ToNanoseconds())
    assert (listed.state, listed.kept, listed.prompt) == (pb.JOB_STATE_QUEUED, False, "a sun")
    assert jobs["waiting"].state == pb.JOB_STATE_QUEUED
    assert not jobs["waiting"].HasField("start_time")
    shown = server.images.GetJob(pb.GetJobRequest(request_id="done"))
    assert shown.job == done
    assert shown.thumbnail.startswith(b"\xff\xd8")
    for stream in (loose, waiting):
        stream.read()


def test_pages_have_every_job_once(server: RunningServer) -> None:
    for number in range(5):
        server.start(kept(f"page-{number}", num_inference_steps=1)).read()
    whole = [each.request_id for each in server.images.ListJobs(pb.ListJobsRequest(page_size=1000)).jobs]
    paged: list[str] = []
    token = ""
    while not paged or token:
        page = server.images.ListJobs(pb.ListJobsRequest(page_size=2, page_token=token))
        paged += [each.request_id for each in page.jobs]
        token = page.next_page_token
    assert paged == whole
    for bad in ({"page_size": 1001}, {"page_size": -1}, {"page_token": "nonsense"}):
        failed = refused(lambda bad=bad: server.images.ListJobs(pb.ListJobsRequest(**bad)))
        assert (failed.code, failed.paths) == (StatusCode.INVALID_ARGUMENT, set(bad))


def test_a_job_belongs_to_its_token(shared_server: RunningServer) -> None:
    def by(name: str) -> dict[str, Any]:
        return {"metadata": [("authorization", f"Bearer {name}")], "timeout": 60}

    images = shared_server.images
    Stream(images.Generate(kept("mine", prompt="secret"), **by("ann"))).read()
    for name in ("bob", "eve"):
        assert refused(watch(shared_server, "mine", token=name).read).reason == "REQUEST_NOT_FOUND"
        assert refused(lambda name=name: images.Cancel(pb.CancelRequest(request_id="mine"), **by(name))).reason
    get = pb.GetJobRequest(request_id="mine")
    assert refused(lambda: images.GetJob(get, **by("bob"))).reason == "REQUEST_NOT_FOUND"
    assert images.ListJobs(pb.ListJobsRequest(), **by("bob")).jobs == []
    own, seen = (images.ListJobs(pb.ListJobsRequest(), **by(name)).jobs[0] for name in ("ann", "eve"))
    assert (own.prompt, own.owner) == ("secret", "ann")
    assert (seen.prompt, seen.owner, seen.request_id) == ("", "ann", "mine")
    assert images.GetJob(get, **by("eve")).job == seen
    other = Stream(images.Generate(kept("mine", prompt="another"), **by("bob"))).read()  # ids are scoped by token
    assert other.of("accepted")[0].parameters.prompt == "another"


def test_the_oldest_results_make_room(small_server: RunningServer) -> None:
    long = "x" * 9_000
    for number in range(30):
        small_server.start(kept(f"job-{number}", num_inference_steps=1, prompt=long, negative_prompt=long)).read()
    listed = [each.request_id for each in small_server.images.ListJobs(pb.ListJobsRequest()).jobs]
    assert 1 < len(listed) < 30
    assert listed == [f"job-{number}" for number in range(29, 29 - len(listed), -1)]
    assert refused(watch(small_server, "job-0").read).reason == "REQUEST_NOT_FOUND"
    assert watch(small_server, "job-29").read().kinds[-1] == "completed"


def test_jobs_that_have_not_ended_are_not_thrown_away_for_new_ones(small_server: RunningServer) -> None:
    long = "x" * 9_000
    with small_server.paused():
        begun: list[Stream] = []

        def one_more() -> None:
            stream = small_server.start(kept(f"long-{len(begun)}", num_inference_steps=1, prompt=long))
            stream.read_until("accepted")
            begun.append(stream)

        failed = refused(lambda: [one_more() for _ in range(200)])
    assert failed.code is StatusCode.RESOURCE_EXHAUSTED
    assert failed.reason == "KEPT_JOBS_FULL"
    assert failed.retry
    assert len(begun) > 5
    for stream in begun:
        assert stream.read().kinds[-1] == "completed"


def test_results_are_kept_for_their_time(tiny_model: Path) -> None:
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], keep_results_seconds=0) as server:
        assert server.start(kept("brief")).read().kinds[-1] == "completed"
        assert refused(watch(server, "brief").read).reason == "REQUEST_NOT_FOUND"
        assert server.start(kept("brief")).read().kinds[-1] == "completed"


@pytest.mark.soak
def test_watchers_of_many_events_see_what_was_made(server: RunningServer) -> None:
    """Over real connections that are lost at random: the checker of Watch's guarantees finds nothing."""
    stop = threading.Event()

    def connections(seed: int) -> list[list[Watched]]:
        chance, seen, after = random.Random(seed), [], 0
        while True:
            stream = watch(server, "many", after)
            seen.append([])
            for response in stream.call:
                event = response.event
                after = event.sequence
                seen[-1].append(Watched(after, event, None))
                if chance.random() < 0.1:
                    stream.call.cancel()
                    break
                stop.wait(chance.choice((0, 0, 0, 0.01)))
            else:
                return seen

    whole = server.start(kept("many", num_inference_steps=min(500, EVENTS // (2 * WATCHERS)), num_images=2), 3600)
    whole.read_until("accepted")
    with ThreadPoolExecutor(WATCHERS) as pool:
        watchers = [pool.submit(connections, seed) for seed in range(WATCHERS)]
        whole.read()
        seen = [each.result() for each in watchers]
    events = {each.sequence: each for stream in (whole, watch(server, "many").read()) for each in stream.events}
    events |= {each.sequence: each.event for watcher in seen for connection in watcher for each in connection}
    made = []
    for sequence, event in sorted(events.items()):
        kind = event.WhichOneof("event")
        image = getattr(getattr(event, kind), "image_index", 0)
        made.append(Watched(sequence, event, (kind, image) if kind in REPLACED else None))
    check(made, seen)
    read = [len(connection) for watcher in seen for connection in watcher]
    print(f"{len(made)} events, {WATCHERS} watchers, who read {sum(read)} of them over {len(read)} connections")
    settle(server)
