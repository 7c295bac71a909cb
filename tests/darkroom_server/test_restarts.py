"""Kept jobs outlive the server's process: it is killed, or stopped, and starts again on the same folder."""

import hashlib
import itertools
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from darkroom.v1 import catalog_service_pb2, image_service_pb2_grpc, parameters_pb2
from darkroom.v1 import image_service_pb2 as pb
from darkroom.v1.events_pb2 import JobEvent
from darkroom_server.api import keeper
from darkroom_server.api.suspects import TURN
from darkroom_server.errors import JobLogFull
from darkroom_server.jobs.log_store import Store
from tests.killable import Forks, KillableServer
from tests.support import RunningServer, Stream, edit_request, generate_request, png, preview, refused

KEEP = parameters_pb2.DISCONNECT_POLICY_KEEP


@pytest.fixture
def start(tiny_model: Path, tmp_path: Path) -> Callable[..., RunningServer]:
    """Makes a server with the same folder each time."""
    return lambda **settings: RunningServer(
        models=[{"name": "tiny", "path": tiny_model, "max_pixels": 128 * 128}],
        **{"state_dir": tmp_path / "state", **settings},
    )


def test_an_end_that_could_not_be_written_is_written_later(
    start: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next server does the job again."""
    monkeypatch.setattr(keeper, "SWEEP_SECONDS", 0.2)
    with start() as server:
        job_log, failures = server.app.keeper._log, [JobLogFull("the disk is full")]
        assert job_log is not None
        finish = job_log.finish

        async def failing(*given: Any) -> None:
            if failures:
                raise failures.pop()
            await finish(*given)

        monkeypatch.setattr(job_log, "finish", failing)
        files = server.start(kept("late", num_inference_steps=2)).read().files()
        late = server.app.keeper.find("", "late")
        assert late is not None
        for _ in range(500):
            if late.history is None:  # the log has it
                break
            time.sleep(0.02)
    with start() as server:
        (job,) = server.images.ListJobs(pb.ListJobsRequest()).jobs
        assert job.state == pb.JOB_STATE_COMPLETED
        assert watch(server, "late").read().files() == files


@pytest.fixture
def process(forks: Forks, tiny_model: Path, tmp_path: Path) -> Iterator[KillableServer]:
    served = KillableServer(forks, tmp_path, models=[{"name": "tiny", "path": tiny_model}])
    served.start()
    yield served
    served.kill()


def kept(request_id: str, **parameters: Any) -> pb.GenerateRequest:
    given = {"prompt": "x", "num_inference_steps": 40, "deterministic": True, **parameters}
    return generate_request(request_id=request_id, disconnect_policy=KEEP, **given, **preview(every_n_steps=7))


def watch(server: RunningServer, request_id: str, after: int = 0) -> Stream:
    return Stream(server.images.Watch(pb.WatchRequest(request_id=request_id, after_sequence=after), timeout=60))


def test_unfinished_jobs_are_taken_up_and_ended_ones_are_there(start: Callable[..., RunningServer]) -> None:
    with start() as server:
        done = server.start(kept("done", num_inference_steps=2, num_images=2)).read()
        with server.paused():
            names = ("generated", "edited")
            picture = png(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))
            streams = [
                server.start(kept("generated")),
                server.start(edit_request(image=picture, request_id="edited", disconnect_policy=KEEP, prompt="y")),
            ]
            accepted = {name: stream.read_until("accepted") for name, stream in zip(names, streams, strict=True)}
    with start() as server:
        events = watch(server, "done").read().events
        assert events[-1] == done.events[-1]
        assert watch(server, "done").read().files() == done.files()
        assert server.start(kept("done", num_inference_steps=2, num_images=2)).read().files() == done.files()
        assert refused(lambda: server.start(kept("done")).read()).reason == "REQUEST_ID_IN_USE"
        for name in names:
            stream = watch(server, name).read()
            assert stream.of("accepted") == [accepted[name]]
            assert [event.sequence for event in stream.events] == sorted({event.sequence for event in stream.events})
            assert stream.kinds[-1] == "completed"
        seed = accepted["generated"].seeds[0]
        same = server.generate(prompt="x", num_inference_steps=40, deterministic=True, seed=seed)
        assert watch(server, "generated").read().files() == same.files()
        assert [job.state for job in server.images.ListJobs(pb.ListJobsRequest()).jobs] == [pb.JOB_STATE_COMPLETED] * 3


def test_a_picture_of_which_the_log_has_but_steps(start: Callable[..., RunningServer], tmp_path: Path) -> None:
    """They are written with another picture of the job."""
    with start() as server, server.paused():
        accepted = server.start(kept("two", num_inference_steps=2, num_images=2)).read_until("accepted")
    step = JobEvent(request_id="two", sequence=9, step={"image_index": 1, "step": 1, "step_count": 2})
    with sqlite3.connect(tmp_path / "state/jobs.sqlite") as database:
        database.execute("INSERT INTO events VALUES (1, 9, ?, NULL, 0, 0)", [step.SerializeToString()])
    database.close()
    with start() as server:
        stream = watch(server, "two").read()
    assert stream.events[:2] == [JobEvent(request_id="two", sequence=1, accepted=accepted), step]
    assert [image.image_index for image in stream.of("image")] == [0, 1]


def test_a_request_is_run_again_as_it_was_resolved(tiny_model: Path, tmp_path: Path) -> None:
    """Whatever the operator has changed meanwhile."""

    def start(**changed: Any) -> RunningServer:
        return RunningServer(models=[{"name": "tiny", "path": tiny_model, **changed}], state_dir=tmp_path / "state")

    with start(default_num_inference_steps=6, default_guidance_scale=3.0) as server, server.paused():
        plain = generate_request(prompt="x", request_id="plain", disconnect_policy=KEEP, deterministic=True)
        accepted = server.start(plain).read_until("accepted")
    with start(default_num_inference_steps=2, default_scheduler="lms", default_guidance_scale=1.0) as server:
        stream = watch(server, "plain").read()
        assert stream.of("accepted") == [accepted]
        assert len(stream.of("step")) == 6
        again = pb.GenerateRequest(parameters=accepted.parameters, deterministic=True)
        assert stream.files() == server.start(again).read().files()


def test_failures_and_deadlines_are_remembered(start: Callable[..., RunningServer]) -> None:
    with start() as server, server.paused():
        for name in ("cancelled", "late"):
            server.start(kept(name), timeout=60 if name == "cancelled" else 0.5).read_until("accepted")
        assert server.images.Cancel(pb.CancelRequest(request_id="cancelled")).cancelled
        assert refused(watch(server, "late").read).code is grpc.StatusCode.DEADLINE_EXCEEDED
    with start() as server:
        assert refused(watch(server, "cancelled").read).code is grpc.StatusCode.CANCELLED
        assert refused(watch(server, "late").read).code is grpc.StatusCode.DEADLINE_EXCEEDED
        states = {job.request_id: job.state for job in server.images.ListJobs(pb.ListJobsRequest()).jobs}
        assert states == {"cancelled": pb.JOB_STATE_CANCELLED, "late": pb.JOB_STATE_FAILED}


def token(name: str, **limits: Any) -> dict[str, Any]:
    return {"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), **limits}


def test_a_job_that_is_taken_up_has_the_limits_of_its_token(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of today: what a token may no longer do, its jobs do not go on with."""

    def start(**tokens: dict[str, Any]) -> RunningServer:
        models = [{"name": name, "path": tiny_model} for name in ("tiny", "other")]
        given = [token(name, **limits) for name, limits in tokens.items()]
        return RunningServer(models=models, state_dir=tmp_path / "state", tokens=given)

    def by(name: str) -> dict[str, Any]:
        return {"metadata": [("authorization", f"Bearer {name}")], "timeout": 60}

    asked = {"other": {"model": "other"}, "large": {"num_images": 2}, "gone": {}, "fits": {}}
    with start(**{name: {} for name in asked}) as server, server.paused():
        for name, parameters in asked.items():
            for number in range(1 + (name == "fits")):
                request = kept(f"{name}-{number}", width=64, height=64, num_inference_steps=4, **parameters)
                Stream(server.images.Generate(request, **by(name))).read_until("accepted")
    limits = {"other": {"models": ["tiny"]}, "large": {"max_pixels": 64 * 64}, "fits": {"max_pixels": 64 * 64}}
    caplog.set_level("INFO")
    with start(**limits, another={}) as server:
        watched = {
            name: Stream(server.images.Watch(pb.WatchRequest(request_id=f"{name}-0"), **by(name))) for name in limits
        }
        assert refused(watched["other"].read).reason == "MODEL_NOT_ALLOWED"
        assert refused(watched["large"].read).reason == "TOKEN_LIMIT"
        assert watched["fits"].read().kinds[-1] == "completed"  # what was accepted together is not refused now
        second = Stream(server.images.Watch(pb.WatchRequest(request_id="fits-1"), **by("fits")))
        assert second.read().kinds[-1] == "completed"
    assert {record.token for record in caplog.records if hasattr(record, "token")} == {"fits"}
    with start(gone={}, other={}) as server:  # which remembers how they ended
        ends = {
            name: refused(Stream(server.images.Watch(pb.WatchRequest(request_id=f"{name}-0"), **by(name))).read)
            for name in ("gone", "other")
        }
    assert ends["gone"].code is grpc.StatusCode.UNAUTHENTICATED
    assert (ends["other"].code, ends["other"].reason) == (grpc.StatusCode.PERMISSION_DENIED, "MODEL_NOT_ALLOWED")


def test_a_job_with_which_the_server_ends_is_given_up(start: Callable[..., RunningServer], tmp_path: Path) -> None:
    """If it did so again and again at the same point of the job, which was alone at work, and nowhere else between."""

    def in_log(change: str = "", *values: Any) -> dict[str, tuple[int, str]]:
        with sqlite3.connect(tmp_path / "state/jobs.sqlite") as database:
            database.execute(change, values)
            found = database.execute("SELECT request_id, begun, ends FROM jobs WHERE ended IS NULL").fetchall()
        database.close()
        return {name: (begun, ends) for name, begun, ends in found}

    innocent = {
        "any-time": (50, "50:3 7 3 3 3 3"),
        "its-model": (50, "50:-7 -8 -9 -10 -11 -12"),
        "a-start": (50, "49:3 3 3 3 3 3"),
        "waits": (0, ""),
    }
    with start() as server, server.paused():
        for name in ("guilty", *innocent):
            steps = 100 if name == "any-time" else 2
            server.start(kept(name, num_inference_steps=steps), timeout=600).read_until("accepted")
    for name, (begun, ends) in {"guilty": (50, "50:3 3 3 3 3 3"), **innocent}.items():
        in_log("UPDATE jobs SET runs = 50, begun = ?, ends = ? WHERE request_id = ?", begun, ends, name)
    with start() as server:
        failed = refused(watch(server, "guilty").read)
        assert (failed.code, failed.reason) == (grpc.StatusCode.INTERNAL, "GIVEN_UP")
        watch(server, "any-time").read_until("step")
        with server.paused():
            beside = generate_request(prompt="x", num_inference_steps=1, request_id="beside")
            stream = server.start(beside)
            stream.read_until("accepted")
            states = {job.request_id: job.state for job in server.images.ListJobs(pb.ListJobsRequest()).jobs}
            assert states["any-time"] == pb.JOB_STATE_RUNNING
            assert {states[name] for name in ("its-model", "a-start", "waits", "beside")} == {pb.JOB_STATE_QUEUED}
    next_run = {"any-time": "51:3 7 3 3 3 3", "its-model": "51:-7 -8 -9 -10 -11 -12", "a-start": "51:", "waits": "51:"}
    expected = {name: (begun, next_run[name]) for name, (begun, _) in innocent.items()}
    assert in_log() == expected, "to stop a server does not count"
    with start() as server:
        for name in innocent:
            assert watch(server, name).read().kinds[-1] == "completed"


def test_a_suspects_evaluations_are_told_apart(start: Callable[..., RunningServer], tmp_path: Path) -> None:
    """Also those of one turn: in the first one row buckets are proven, which takes as long as many turns."""
    with start() as server, server.paused():
        server.start(kept("one", num_inference_steps=3, deterministic=True), timeout=600).read_until("accepted")
    with sqlite3.connect(tmp_path / "state/jobs.sqlite") as database:
        database.execute("UPDATE jobs SET begun = 50")
        database.execute("CREATE TABLE told (ends TEXT)")
        database.execute("CREATE TRIGGER tell UPDATE OF ends ON jobs BEGIN INSERT INTO told VALUES (new.ends); END")
    with start() as server:
        assert watch(server, "one").read().kinds[-1] == "completed"
        info = server.catalog.GetServerInfo(catalog_service_pb2.GetServerInfoRequest())
    points = [int(ends.partition(":")[2].split()[-1]) for (ends,) in database.execute("SELECT ends FROM told")]
    database.close()
    points = [point for point in points if point > 0]
    assert points == sorted(set(points))
    evaluations = Counter(point // TURN for point in points if point % TURN)
    assert evaluations[2] == evaluations[3] == 1
    assert evaluations[1] >= 2 * info.devices[0].deterministic_rows


def test_accepted_is_sent_when_the_log_has_it(
    start: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, go_on, add = threading.Event(), threading.Event(), Store.add

    def held_add(*given: Any) -> int:
        writing.set()
        assert go_on.wait(60)
        return add(*given)

    monkeypatch.setattr(Store, "add", held_add)
    with start() as server, ThreadPoolExecutor() as pool:
        stream = server.start(kept("one", num_inference_steps=1))
        reading = pool.submit(stream.read_until, "accepted")
        assert writing.wait(60)
        server.generate(prompt="x", num_inference_steps=1)  # came later, and is done
        assert not reading.done()
        go_on.set()
        assert reading.result(60).seeds
        assert stream.read().kinds[-1] == "completed"


def test_a_damaged_log_refuses_kept_jobs_alone(start: Callable[..., RunningServer], tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/jobs.sqlite").write_bytes(b"not a database " * 1000)
    with start() as server:
        failed = refused(lambda: server.start(kept("one")).read())
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "JOB_LOG_UNAVAILABLE")
        assert "not a database" in failed.message
        assert server.generate(prompt="x", num_inference_steps=1).kinds[-1] == "completed"


def test_a_log_that_is_damaged_meanwhile_refuses_kept_jobs_alone(
    start: Callable[..., RunningServer], tmp_path: Path
) -> None:
    with start() as server:
        server.start(kept("before")).read()
        for path in (tmp_path / "state").glob("jobs.sqlite*"):
            with path.open("r+b") as file:
                file.write(b"\xa5" * path.stat().st_size)
        for call in (lambda: server.start(kept("one")), lambda: watch(server, "before")):
            failed = refused(lambda call=call: call().read())
            assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "JOB_LOG_UNAVAILABLE")
        assert server.generate(prompt="x", num_inference_steps=1).kinds[-1] == "completed"


def test_a_picture_that_is_gone_from_the_disk(start: Callable[..., RunningServer], tmp_path: Path) -> None:
    large = kept("one", width=128, height=128, num_inference_steps=1)
    with start() as server:
        server.start(large).read()
        [picture] = (tmp_path / "state/pictures").iterdir()
        picture.unlink()
        assert refused(watch(server, "one").read).reason == "REQUEST_NOT_FOUND"
        assert server.start(large).read().kinds[-1] == "completed"  # made anew


def test_a_full_disk_refuses_kept_jobs_alone(process: KillableServer) -> None:
    process.kill()
    process.start(limit=300_000)
    with grpc.insecure_channel(process.address) as channel:
        images = image_service_pb2_grpc.ImageServiceStub(channel)
        words = "x" * 9_000
        numbers = itertools.count()

        def one() -> Stream:
            request = kept(str(next(numbers)), num_inference_steps=1, prompt=words, negative_prompt=words)
            return Stream(images.Generate(request, timeout=60)).read()

        failed = refused(lambda: [one() for _ in range(50)])
        assert next(numbers) > 2
        assert failed.reason in ("JOB_LOG_FULL", "JOB_LOG_UNAVAILABLE")
        loose = generate_request(prompt="x", num_inference_steps=1)
        assert Stream(images.Generate(loose, timeout=60)).read().kinds[-1] == "completed"
