"""Streams of kept jobs over lost connections and restarts of a real server: the reader's loop does not notice."""

import asyncio
import json
import threading

import pytest

from darkroom_client import (
    AsyncClient,
    Cancelled,
    Client,
    DeadlineExceeded,
    Job,
    RequestNotFound,
    ServerUnreachable,
    Step,
    Unavailable,
)
from tests.support import RunningServer

LONG = {"num_inference_steps": 60, "deterministic": True, "seed": 5}


@pytest.fixture
def start(tiny_model, tmp_path):
    """Makes a server of the tiny model on one address, with a log of jobs."""
    settings = {"listen": f"unix:{tmp_path / 'socket'}", "state_dir": tmp_path / "state"}
    return lambda **changed: RunningServer(models=[{"name": "tiny", "path": tiny_model}], **{**settings, **changed})


def read_until_step(stream, step):
    """The events up to this step."""
    events = []
    for event in stream:
        events.append(event)
        if isinstance(event, Step) and event.step == step:
            return events
    raise AssertionError("the stream ended")


@pytest.mark.parametrize("logged", [True, False], ids=["log", "memory"])
def test_a_stream_goes_on_over_a_restart_of_the_server(start, logged):
    """With the server's log the job goes on; without, the client starts it again by its seed."""
    folder = {} if logged else {"state_dir": None}
    options = {key: value for key, value in LONG.items() if key != "seed"}
    with start(**folder) as server:
        stream = Client(server.address).generate("x", **options, keep=True)
        events = read_until_step(stream, 2)
    with start(**folder) as server, Client(server.address) as client:
        events += stream
        kinds = [type(event).__name__ for event in events]
        assert kinds.count("Accepted") == kinds.count("Image") == kinds.count("Completed") == 1
        steps = [event.step for event in events if isinstance(event, Step)]
        assert steps == sorted(set(steps))
        assert steps[-1] == 60
        again = client.generate("x", **{**options, "seed": stream.accepted.seeds[0]}).image()
        assert stream.image().image_bytes == again.image_bytes


def test_a_watch_goes_on_over_a_restart(start):
    with start() as server:
        client = Client(server.address)
        started = client.generate("x", **LONG, keep=True)
        read_until_step(started, 1)
        started.close()
        stream = client.watch(started.request_id)
        events = read_until_step(stream, 2)
    with start():
        events += stream
    steps = [event.step for event in events if isinstance(event, Step)]
    assert steps == sorted(set(steps))
    assert stream.image().seed == 5
    client.close()


def test_closing_leaves_the_job_and_cancelling_ends_it(start):
    with start() as server, Client(server.address) as client:
        stream = client.generate("x", **LONG, keep=True)
        read_until_step(stream, 1)
        stream.close()
        again = client.generate("x", **LONG, keep=True, request_id=stream.request_id)
        assert again.image().image_bytes == client.watch(stream.request_id).image().image_bytes
        long = {**LONG, "num_inference_steps": 400}
        stream = client.generate("x", **long, keep=True)
        read_until_step(stream, 1)
        stream.cancel()
        with pytest.raises(Cancelled):
            stream.image()
        with pytest.raises(Cancelled):
            client.watch(stream.request_id).image()


def test_jobs_are_records(start):
    with start() as server, Client(server.address) as client:
        stream = client.generate("a star", num_inference_steps=2, num_images=2, keep=True)
        stream.images()
        (job,) = client.jobs()
        assert isinstance(job, Job)
        assert (job.request_id, job.state, job.prompt, job.num_images) == (stream.request_id, "completed", "a star", 2)
        assert job.create_time < job.start_time < job.end_time < job.expire_time
        assert job.position is None
        assert client.job(stream.request_id).thumbnail.startswith(b"\xff\xd8")
        with pytest.raises(RequestNotFound):
            client.job("nobody's")
        with pytest.raises(RequestNotFound):
            client.watch("nobody's").image()


def test_patience_ends_with_the_timeout_or_is_none_without_retries(start):
    with start() as server:
        client, impatient = Client(server.address), Client(server.address, retries=0)
        long = {**LONG, "num_inference_steps": 500}
        streams = [client.generate("x", **long, keep=True, timeout=4), impatient.generate("x", **long, keep=True)]
        for stream in streams:
            read_until_step(stream, 1)
    for stream in streams:
        with pytest.raises((Unavailable, DeadlineExceeded)):
            list(stream)
    with pytest.raises(ServerUnreachable):
        impatient.generate("x", keep=True).image()
    for each in (client, impatient):
        each.close()


def test_closing_the_client_ends_the_wait_for_the_server(start):
    async def run():
        client = AsyncClient(address)
        stream = client.generate("x", **{**LONG, "num_inference_steps": 500}, keep=True)
        while not isinstance(await anext(stream), Step):
            pass
        await asyncio.to_thread(stop.set)
        await asyncio.to_thread(stopped.wait)
        reading = asyncio.ensure_future(stream.image())
        await asyncio.sleep(0.3)
        await client.close()
        with pytest.raises(Cancelled):
            await reading

    stop, stopped = threading.Event(), threading.Event()
    with start() as server:
        address = server.address
        thread = threading.Thread(target=asyncio.run, args=[run()])
        thread.start()
        stop.wait(60)
    stopped.set()
    thread.join(60)
    assert not thread.is_alive()


def test_jobs_on_the_command_line(start, darkroom, tmp_path):
    """`generate --keep`, then `jobs`, `watch`, `result` and `cancel` by its id."""
    with start() as server:
        at = ("--address", server.address)
        made = tmp_path / "made.png"
        darkroom("generate", "a star", "--steps", "2", "--num-images", "1", "--keep", "--out", made, *at)
        (job,) = json.loads(darkroom("jobs", "--json", *at).stdout)
        assert (job["state"], job["prompt"], job["kept"]) == ("completed", "a star", True)
        listed = darkroom("jobs", *at).stdout
        assert all(text in listed for text in (job["request_id"], "completed", "a star", "1/1"))
        for command in ("watch", "result"):
            path = tmp_path / f"{command}.png"
            assert darkroom(command, job["request_id"], "--out", path, *at).stdout.split() == [str(path)]
            assert path.read_bytes() == made.read_bytes()
        assert "had ended already" in darkroom("cancel", job["request_id"], *at).stdout
        with server.paused(), Client(server.address) as client:
            waiting = client.generate("x", keep=True, request_id="waiting")
            next(waiting)
            job = client.job("waiting")
            assert (job.state, job.start_time, job.end_time, job.expire_time) == ("queued", None, None, None)
            assert "is queued still" in darkroom("result", "waiting", *at, exit_code=1).output
            assert darkroom("cancel", "waiting", *at).stdout == "cancelled\n"
        for command in ("watch", "result", "cancel"):
            assert "nobody" in darkroom(command, "nobody", *at, exit_code=1).output
