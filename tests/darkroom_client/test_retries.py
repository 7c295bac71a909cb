"""Calls that the server cannot take yet are made again, before their first event and within the caller's time-out."""

import asyncio
import threading

import grpc
import pytest

from darkroom_client import (
    AsyncClient,
    Cancelled,
    Client,
    OutOfMemory,
    QueueFull,
    RequestIdInUse,
    ServerUnreachable,
    ShuttingDown,
)

BUSY = {
    "full": ("RESOURCE_EXHAUSTED", "QUEUE_FULL", QueueFull),
    "draining": ("UNAVAILABLE", "SHUTTING_DOWN", ShuttingDown),
    "lost": ("UNAVAILABLE", "", ServerUnreachable),
}


@pytest.fixture
def busy(scripted, abort_call, make_events):
    """Makes the server refuse the first `times` jobs."""

    def begin(times, code="RESOURCE_EXHAUSTED", reason="QUEUE_FULL", retry_after=0.01):
        def script(request, context):
            remaining.append(context.time_remaining())
            if len(scripted.requests) <= times:
                abort_call(context, grpc.StatusCode[code], reason, retry_after=retry_after)
            return make_events(request.request_id).whole_job()

        scripted.script = script

    remaining = begin.remaining = []
    return begin


@pytest.mark.parametrize("name", BUSY)
def test_a_job_is_begun_again_with_its_id(scripted, client, busy, name):
    busy(2, *BUSY[name][:2])
    stream = client.generate("a")
    assert len(list(stream)) == 9
    assert [request.request_id for request in scripted.requests] == [stream.request_id] * 3


@pytest.mark.parametrize("name", BUSY)
def test_retries_can_be_turned_off(scripted, busy, name):
    code, reason, kind = BUSY[name]
    busy(1, code, reason)
    with Client(scripted.address, retries=0) as client, pytest.raises(kind):
        client.generate("a").image()
    assert len(scripted.requests) == 1


def test_without_a_time_out_there_are_three(scripted, client, busy):
    busy(6)
    with pytest.raises(QueueFull):
        client.generate("a").image()
    assert len(scripted.requests) == 4
    scripted.requests.clear()
    with Client(scripted.address, retries=6) as patient:
        assert patient.generate("a").image().seed == 7


def test_with_one_there_are_as_many_as_it_allows(scripted, client, busy):
    busy(4, retry_after=0.5)
    assert client.generate("a", timeout=60).image().seed == 7
    assert 0 < busy.remaining[-1] < busy.remaining[0] - 1  # of each attempt, the time left; gRPC rounds it


def test_no_attempt_is_waited_for_beyond_the_time_out(scripted, client, busy):
    busy(1, retry_after=40)
    with pytest.raises(QueueFull):
        client.generate("a", timeout=30).image()
    assert len(scripted.requests) == 1


def test_other_failures_are_final(scripted, client, busy):
    busy(1, reason="OUT_OF_MEMORY")
    with pytest.raises(OutOfMemory):
        client.generate("a", timeout=60).image()
    busy(2, "ALREADY_EXISTS", "REQUEST_ID_IN_USE")
    with pytest.raises(RequestIdInUse):
        client.generate("a", timeout=60).image()
    assert len(scripted.requests) == 2


def test_so_are_failures_after_the_first_event(scripted, client, abort_call, make_events):
    def script(request, context):
        yield make_events(request.request_id).accepted()
        abort_call(context, grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", retry_after=0.01)

    scripted.script = script
    with pytest.raises(ShuttingDown):
        client.generate("a", timeout=60).image()
    assert len(scripted.requests) == 1


def test_the_id_may_still_be_held_by_the_attempt_that_was_lost(scripted, client, abort_call, make_events):
    def script(request, context):
        answers = [("UNAVAILABLE", ""), ("ALREADY_EXISTS", "REQUEST_ID_IN_USE")]
        if len(scripted.requests) <= len(answers):
            code, reason = answers[len(scripted.requests) - 1]
            abort_call(context, grpc.StatusCode[code], reason)
        return make_events(request.request_id).whole_job()

    scripted.script = script
    assert client.generate("a").image().seed == 7


def test_if_it_holds_the_id_to_the_end_the_connection_was_lost(scripted, client, abort_call):
    def script(request, context):
        lost = len(scripted.requests) == 1
        code, reason = ("UNAVAILABLE", "") if lost else ("ALREADY_EXISTS", "REQUEST_ID_IN_USE")
        abort_call(context, grpc.StatusCode[code], reason, retry_after=0.01)

    scripted.script = script
    with pytest.raises(ServerUnreachable):
        client.generate("a").image()
    assert len(scripted.requests) == 4


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_waiting_ends_with_the_stream_and_the_client(scripted, client, busy, how):
    busy(1, retry_after=100)
    stream = client.generate("a")
    threading.Timer(0.3, stream.cancel if how == "cancel" else client.close).start()
    with pytest.raises(Cancelled):
        stream.image()
    assert len(scripted.requests) == 1


def test_the_same_from_asyncio(scripted, busy):
    async def main():
        async with AsyncClient(scripted.address) as client:
            busy(1)
            image = await client.generate("a").image()
            busy(100, retry_after=100)
            reading = asyncio.create_task(client.generate("b").image())
            await asyncio.sleep(0.2)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            return image.seed

    assert asyncio.run(main()) == 7


def test_other_calls_are_made_again_too(scripted, client):
    scripted.refusals = 2
    assert client.models()[0].name == "shapes"
    scripted.refusals = 2
    assert client.load_model("shapes").name == "shapes"
    scripted.refusals = 4
    with pytest.raises(ServerUnreachable):
        client.models()
    assert scripted.refusals == 0
