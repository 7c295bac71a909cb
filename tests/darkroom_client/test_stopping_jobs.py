"""Who stops a job and how, sync and async: on the server it ends."""

import asyncio
import gc
import signal
import threading
import traceback

import pytest

from darkroom_client import Accepted, Cancelled, Completed, DeadlineExceeded, Image, Preview, Step


class TestWhatStopsAJob:
    @pytest.fixture(autouse=True)
    def _endless(self, scripted):
        scripted.script = scripted.endless

    def test_closing(self, scripted, client):
        stream = client.generate("endless")
        next(iter_of := iter(stream))
        stream.close()
        scripted.wait_ended(stream.request_id)
        assert list(iter_of) == []

    def test_the_end_of_the_context(self, scripted, client):
        with client.generate("endless") as stream:
            scripted.wait_started(stream.request_id)
        scripted.wait_ended(stream.request_id)

    def test_an_exception_in_the_loop_once_nothing_holds_the_stream(self, scripted, client):
        stream = client.generate("endless", request_id="job")
        with pytest.raises(ZeroDivisionError):
            any(1 / 0 for _ in stream)
        assert isinstance(next(stream), Step)
        del stream
        scripted.wait_ended("job")

    def test_an_exception_whose_traceback_is_kept(self, scripted, client):
        def run():
            for _ in client.generate("endless", request_id="kept"):
                raise ValueError

        with pytest.raises(ValueError) as kept:  # noqa: PT011
            run()
        scripted.wait_ended("kept")
        assert traceback.format_tb(kept.tb)

    def test_break_from_a_loop_over_a_stream_without_a_name(self, scripted, client):
        for _ in client.generate("endless", request_id="job"):
            break
        scripted.wait_ended("job")

    def test_but_not_break_while_the_stream_is_held(self, scripted, client, make_events):
        scripted.script = lambda request, context: make_events(request.request_id).whole_job()
        stream = client.generate("a red circle")
        assert isinstance(next(iter(stream)), Accepted)
        for event in stream:
            assert isinstance(event, Step)
            break
        assert [type(event) for event in stream] == [Preview, *[Step, Preview] * 2, Image, Completed]
        assert stream.image().seed == 7
        assert list(stream) == []

    def test_an_image_of_a_stream_that_was_closed(self, client):
        stream = client.generate("endless")
        stream.close()
        with pytest.raises(Cancelled, match="closed before"):
            stream.image()

    def test_dropping_it(self, scripted, client):
        stream = client.generate("endless", request_id="dropped")
        scripted.wait_started("dropped")
        del stream
        scripted.wait_ended("dropped")

    def test_dropping_it_within_a_cycle_and_half_read(self, scripted, client):
        stream = client.generate("endless", request_id="cycle")
        cycle = [stream, iter(stream)]
        next(cycle[1])
        cycle.append(cycle)
        del stream, cycle
        gc.collect()
        scripted.wait_ended("cycle")

    def test_cancel_from_another_thread(self, scripted, client):
        stream = client.generate("endless")
        threading.Timer(0.2, stream.cancel).start()
        with pytest.raises(Cancelled):
            for _ in stream:
                pass
        scripted.wait_ended(stream.request_id)
        assert scripted.cancel_calls == []

    def test_keyboard_interrupt(self, scripted, client):
        main = threading.main_thread().ident
        threading.Timer(0.3, signal.pthread_kill, [main, signal.SIGINT]).start()
        stream = client.generate("endless")
        with pytest.raises(KeyboardInterrupt):
            stream.image()
        scripted.wait_ended(stream.request_id)

    def test_closing_the_client(self, scripted, client):
        stream = client.generate("endless")
        threading.Timer(0.2, client.close).start()
        with pytest.raises(Cancelled, match="its client was closed"):
            stream.image()
        scripted.wait_ended(stream.request_id)

    def test_the_timeout(self, scripted, client):
        stream = client.generate("endless", timeout=0.3)
        with pytest.raises(DeadlineExceeded, match=f"^the time-out passed before .* at {client.address} was done$"):
            stream.image()
        scripted.wait_ended(stream.request_id)

    def test_cancel_by_name(self, scripted, client):
        assert client.cancel("some") is True
        assert client.cancel("over") is False
        assert scripted.cancel_calls == ["some", "over"]

    def test_a_job_that_outlives_its_stream_is_stopped_by_its_name(self, scripted, client):
        stream = client.generate("endless", disconnect_policy="keep")
        stream.cancel()
        assert scripted.cancel_calls == [stream.request_id]

    def test_a_job_that_ends_with_its_stream_needs_no_call_for_it(self, scripted, client):
        stream = client.generate("endless", disconnect_policy="cancel")
        scripted.wait_started(stream.request_id)
        stream.cancel()
        scripted.wait_ended(stream.request_id)
        assert scripted.cancel_calls == []

    def test_closing_a_watch_leaves_the_job(self, scripted, client):
        with client.watch("some", after_sequence=3) as stream:
            assert isinstance(next(iter(stream)), Accepted)
        scripted.wait_ended("some")
        assert scripted.cancel_calls == []
        client.watch("some").cancel()
        assert scripted.cancel_calls == ["some"]


@pytest.mark.parametrize("how", ["close", "context", "break", "exception", "drop", "task", "timeout", "cancel"])
def test_what_stops_a_job_with_asyncio(scripted, async_client, how):
    scripted.script = scripted.endless

    async def close(client):
        stream = client.generate("endless", request_id="job")
        await asyncio.to_thread(scripted.wait_started, "job")
        stream.close()

    async def context(client):
        async with client.generate("endless", request_id="job") as stream:
            await anext(aiter(stream))

    async def break_(client):
        async for _ in client.generate("endless", request_id="job"):
            break

    async def exception(client):
        stream = client.generate("endless", request_id="job")
        with pytest.raises(ZeroDivisionError):
            [1 / 0 async for _ in stream]

    async def drop(client):
        stream = client.generate("endless", request_id="job")
        await asyncio.to_thread(scripted.wait_started, "job")
        del stream

    async def task(client):
        reading = asyncio.create_task(client.generate("endless", request_id="job").image())
        await asyncio.sleep(0.1)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    async def timeout(client):
        stream = client.generate("endless", request_id="job")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await stream.image()

    async def cancel(client):
        stream = client.generate("endless", request_id="job")
        asyncio.get_running_loop().call_later(0.1, lambda: asyncio.ensure_future(stream.cancel()))
        with pytest.raises(Cancelled):
            await stream.image()

    ways = [close, context, break_, exception, drop, task, timeout, cancel]
    way = next(each for each in ways if each.__name__.rstrip("_") == how)

    async def main():
        async with async_client as client:
            await way(client)
            gc.collect()
            await asyncio.to_thread(scripted.wait_ended, "job")

    asyncio.run(main())


def test_the_other_streams_of_a_client_do_not_notice(scripted, async_client, make_events):
    async def main():
        async with async_client as client:
            scripted.script = scripted.endless
            doomed = client.generate("endless")
            await anext(aiter(doomed))
            scripted.script = lambda request, context: make_events(request.request_id).whole_job()
            other = client.generate("a red circle")
            await doomed.cancel()
            return await other.image()

    assert asyncio.run(main()).seed == 7


def test_two_hundred_cancels_leave_nothing_behind(scripted, client):
    scripted.script = scripted.endless
    streams = [client.generate("endless") for _ in range(8)]
    for _ in range(25):
        for stream in streams:
            stream.cancel()
        streams = [client.generate("endless") for _ in range(8)]
    for stream in streams:
        stream.close()
    scripted.wait(lambda: not scripted.active)
