"""However a client leaves, its job stops within a step and nothing of it is left."""

import asyncio
import gc
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from darkroom.v1.image_service_pb2 import CancelRequest
from darkroom.v1.image_service_pb2_grpc import ImageServiceStub
from darkroom_plugins.sample import Sample
from darkroom_server.jobs.job import Job
from tests.support import RunningServer, Stream, generate_request

LONG = {"prompt": "x", "num_inference_steps": 400}


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[RunningServer]:
    """A server of its own: what is left over can be counted."""
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}]) as running:
        yield running


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.002)


def nothing_left(server: RunningServer) -> bool:
    return server.app.jobs.active_jobs == 0 and server.app.engine.idle


def alive(kind: type) -> int:
    gc.collect()
    return sum(type(each) is kind for each in gc.get_objects())


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
    monkeypatch.setattr(engine, "cancel", lambda job: (at_cancel.append(engine.ticks), cancel(job)))
    stream = server.start(generate_request(**LONG))
    stream.read_until("step")
    leave(server, stream)
    wait_for(lambda: nothing_left(server))
    assert engine.ticks - at_cancel[0] <= 1
    assert engine.ticks < 400
    wait_for(lambda: alive(Sample) == alive(Job) == 0)


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


@pytest.mark.parametrize("waves", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_random_cancels_leave_nothing(waves: int, server: RunningServer) -> None:
    rng = random.Random(0)
    threads_before = threading.active_count()
    tasks_before = server.run(_count_tasks())

    def cancel_somewhen(seed: int) -> None:
        stream = server.start(generate_request(prompt="x", seed=seed, num_inference_steps=rng.randint(1, 60)))
        try:
            for _ in range(rng.randint(0, 12)):
                stream.events.append(next(stream.call).event)
        except StopIteration:
            return
        stream.call.cancel()

    for wave in range(waves):
        clients = [threading.Thread(target=cancel_somewhen, args=(20 * wave + i,)) for i in range(20)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    wait_for(lambda: nothing_left(server))
    wait_for(lambda: server.run(_count_tasks()) <= tasks_before)
    assert threading.active_count() <= threads_before + 1
    wait_for(lambda: alive(Sample) == alive(Job) == 0)
    assert server.generate(prompt="x", num_inference_steps=2).kinds[-1] == "completed"


async def _count_tasks() -> int:
    return len(asyncio.all_tasks())
