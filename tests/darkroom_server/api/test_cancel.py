"""However a client leaves, its job stops within a step and nothing of it is left."""

import asyncio
import contextlib
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from darkroom.v1.image_service_pb2 import CancelRequest
from darkroom.v1.image_service_pb2_grpc import ImageServiceStub
from darkroom_plugins import hookimpl
from darkroom_plugins.contract import Conditioner
from darkroom_plugins.errors import DarkroomError
from darkroom_plugins.sample import Sample
from darkroom_server.jobs.job import Job
from tests.killable import many
from tests.support import RunningServer, Stream, alive, generate_request, wait_for

ENDS = int(many("ENDS", 60))
LONG = {"prompt": "x", "num_inference_steps": 400}


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[RunningServer]:
    """A server of its own: what is left over can be counted."""
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}]) as running:
        yield running


def nothing_left(server: RunningServer) -> bool:
    return server.app.jobs.active_jobs == 0 and server.app.engine.idle


def by_cancelling(server: RunningServer, stream: Stream) -> None:
    stream.call.cancel()


def by_request(server: RunningServer, stream: Stream) -> None:
    assert server.images.Cancel(CancelRequest(request_id=stream.events[0].request_id)).cancelled
    with pytest.raises(grpc.RpcError) as caught:
        stream.read()
    assert caught.value.code() is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize("leave", [by_cancelling, by_request])
def test_at_most_one_more_step_runs(
    server: RunningServer, leave: Callable[[RunningServer, Stream], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = server.app.engine
    at_cancel: list[int] = []
    cancel = engine.cancel
    monkeypatch.setattr(engine, "cancel", lambda *why: (at_cancel.append(engine.ticks), cancel(*why)))
    stream = server.start(generate_request(**LONG))
    stream.read_until("step")
    leave(server, stream)
    wait_for(lambda: nothing_left(server))
    assert engine.ticks - at_cancel[0] <= 1
    assert engine.ticks < 400
    wait_for(lambda: alive(Sample, Job) == 0)


def test_a_lost_connection_cancels(server: RunningServer) -> None:
    channel = grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)])
    Stream(ImageServiceStub(channel).Generate(generate_request(**LONG))).read_until("step")
    assert not nothing_left(server)
    channel.close()
    wait_for(lambda: nothing_left(server))


def test_the_deadline_ends_a_job(server: RunningServer) -> None:
    """One that could have been met: else the job would have been refused."""
    stream = server.start(generate_request(**{**LONG, "num_inference_steps": 40}), timeout=3)
    stream.read_until("step")
    with server.paused(), pytest.raises(grpc.RpcError) as caught:
        stream.read()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "step" in stream.kinds
    wait_for(lambda: nothing_left(server))


def test_a_waiting_job_can_be_cancelled(tiny_model: Path) -> None:
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], limits={"max_batch_rows": 2}) as server:
        running = server.start(generate_request(**LONG))
        running.read_until("step")
        waiting = server.start(generate_request(**LONG, request_id="waiting"))
        waiting.read_until("queued")
        server.images.Cancel(CancelRequest(request_id="waiting"))
        with pytest.raises(grpc.RpcError):
            waiting.read()
        wait_for(lambda: server.app.jobs.active_jobs == 1)
        running.call.cancel()
        wait_for(lambda: nothing_left(server))


def test_others_do_not_notice(server: RunningServer) -> None:
    request = {"prompt": "kept", "seed": 3, "num_inference_steps": 40, "scheduler": "euler-ancestral"}
    alone = server.generate(**request)
    kept = server.start(generate_request(**request))
    kept.read_until("step")
    for number in range(6):
        other = server.start(generate_request(prompt=f"other {number}", num_inference_steps=100))
        other.read_until("step")
        other.call.cancel()
    kept.read()
    assert [step.step for step in kept.of("step")] == list(range(1, 41))
    assert max(step.batch_rows for step in kept.of("step")) > 2
    assert abs(kept.pixels - alone.pixels).max() <= 1


class Evaluations(Conditioner):
    """Counts those of each job, by its prompt."""

    name = "evaluations"

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()

    def wants(self, request: Any, parameters: Any) -> bool:
        return True

    def condition(self, evaluation: Any, parameters: Any) -> None:
        self.of.update({row.sample.request.prompt: 1 for row in evaluation.rows})


class Counting:
    darkroom_api_version = 1

    def __init__(self) -> None:
        self.evaluations = Evaluations()

    @hookimpl
    def darkroom_conditioners(self) -> list[Any]:
        return [self.evaluations]


@pytest.fixture
def counting(tiny_model: Path) -> Iterator[tuple[RunningServer, Counter[str]]]:
    plugin = Counting()
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], plugins={"counting": plugin}) as running:
        yield running, plugin.evaluations.of


def end_somehow(server: RunningServer, number: int) -> str:
    """Begin a job, and leave it at some moment in some way; which."""
    chance = random.Random(number)
    way = chance.choice(("cancel", "request", "deadline", "connection"))
    channel = grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)])
    request = generate_request(prompt=f"{number}", request_id=f"{number}", num_inference_steps=chance.randint(1, 60))
    timeout = chance.uniform(0.0, 1.0) if way == "deadline" else 60
    stream = Stream(ImageServiceStub(channel if way == "connection" else server.channel).Generate(request, timeout))
    with contextlib.suppress(StopIteration, grpc.RpcError):
        for _ in range(10**6 if way == "deadline" else chance.randint(0, 12)):
            next(stream.call)
        if way == "request":
            server.images.Cancel(CancelRequest(request_id=f"{number}"))
            list(stream.call)
        if way == "cancel":
            stream.call.cancel()
    channel.close()
    return way


@pytest.mark.soak
def test_random_ends_leave_no_trace(
    counting: tuple[RunningServer, Counter[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancels, deadlines and disconnects at any moment: at most one step runs after each, and nothing is left."""
    server, evaluated = counting
    threads, tasks = threading.active_count(), server.run(_count_tasks())
    at_end: dict[str, int] = {}
    cancel = server.app.engine.cancel

    def noted(job: Job, why: DarkroomError) -> None:
        at_end.setdefault(job.request_id, evaluated[job.request_id])
        cancel(job, why)

    monkeypatch.setattr(server.app.engine, "cancel", noted)
    with ThreadPoolExecutor(20) as pool:
        ways = Counter(pool.map(partial(end_somehow, server), range(ENDS)))
    print(f"{ENDS} ends: {dict(ways)}")
    wait_for(lambda: nothing_left(server), 60)
    wait_for(lambda: server.run(_count_tasks()) <= tasks)
    wait_for(lambda: threading.active_count() <= threads + 1)
    wait_for(lambda: alive(Sample, Job) == 0)
    assert at_end
    assert [number for number, count in at_end.items() if evaluated[number] > count + 1] == []
    assert server.generate(prompt="x", num_inference_steps=2).kinds[-1] == "completed"


async def _count_tasks() -> int:
    return len(asyncio.all_tasks())
