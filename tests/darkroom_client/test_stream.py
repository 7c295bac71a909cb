"""Streams, sync and async: the events in order, pictures in parts, and who stops a job and how."""

import asyncio
import gc
import threading
from io import BytesIO

import grpc
import PIL.Image
import pytest

from darkroom.v1 import events_pb2
from darkroom_client import (
    Accepted,
    Client,
    Completed,
    DarkroomError,
    Image,
    Preview,
    ServerUnreachable,
    Step,
)


def noise_png(size: int) -> bytes:
    import random

    buffer = BytesIO()
    PIL.Image.frombytes("RGB", (size, size), random.Random(0).randbytes(3 * size * size)).save(buffer, "PNG")
    return buffer.getvalue()


def in_parts(events, data: bytes, size: int, image: int = 0):
    yield events.image(data[:size], total=len(data), image=image)
    for offset in range(size, len(data), size):
        yield events.chunk(offset, data[offset : offset + size], image=image)


def test_events_come_typed_and_in_order(client):
    kinds = [type(event) for event in client.generate("a red circle")]
    assert kinds == [Accepted, Step, Preview, Step, Preview, Step, Preview, Image, Completed]


def test_what_the_events_carry(client, tmp_path):
    stream = client.generate("a red circle", request_id="mine")
    accepted, step, preview, *_, image, completed = list(stream)
    assert (accepted.seeds, accepted.step_count, accepted.parameters.seed) == ((7,), 3, 7)
    assert (step.step, step.step_count, step.sigma, step.eta_seconds, step.batch_rows) == (1, 3, None, None, 2)
    assert (preview.decoder, preview.pil.size, preview.suffix) == ("full-vae", (64, 64), ".png")
    assert (image.seed, image.safety, image.pil.getpixel((0, 0))) == (7, "passed", (255, 0, 0))
    assert image.metadata["parameters"] == {"prompt": "a red circle", "seed": "7"}
    assert image.save(tmp_path / "a.png").read_bytes() == image.image_bytes
    assert completed.timings.denoise_seconds == 1.5
    assert {event.request_id for event in (accepted, step, preview, image, completed)} == {"mine"}
    assert (stream.accepted, stream.completed) == (accepted, completed)


def test_image_and_images(scripted, client, make_events):
    def script(request, context):
        events = make_events(request.request_id)
        return [
            events.accepted(),
            events.image(image=1, seed=8),
            events.image(image=0, seed=7),
            events.completed("the prompt was cut off"),
        ]

    scripted.script = script
    stream = client.generate("two")
    assert [image.seed for image in stream.images()] == [7, 8]
    assert stream.image().seed == 7
    assert stream.completed.warnings == ("the prompt was cut off",)


def test_a_large_picture_arrives_whole_through_the_default_limits(scripted, client, make_events):
    large = noise_png(1300)
    assert len(large) > 4 * 1024 * 1024

    def script(request, context):
        events = make_events(request.request_id)
        yield events.accepted()
        yield from in_parts(events, large, 3 * 1024 * 1024)
        yield events.completed()

    scripted.script = script
    image = client.generate("large").image()
    assert image.image_bytes == large
    assert image.sequence == 3  # that of its last part


def test_parts_of_several_pictures_may_interleave(scripted, client, make_events):
    first, second = noise_png(40), noise_png(50)

    def script(request, context):
        events = make_events(request.request_id)
        a, b = list(in_parts(events, first, 1000, 0)), list(in_parts(events, second, 1000, 1))
        mixed = [part for pair in zip(a, b, strict=False) for part in pair] + b[len(a) :]
        return [events.accepted(), *mixed, events.completed()]

    scripted.script = script
    kinds = []
    stream = client.generate("two")
    for event in stream:
        kinds.append(type(event))
    assert kinds == [Accepted, Image, Image, Completed]
    assert [image.image_bytes for image in stream.images()] == [first, second]


def test_a_missing_part_is_an_error(scripted, client, make_events):
    def script(request, context):
        events = make_events(request.request_id)
        return [events.accepted(), events.image(b"abc", total=9), events.chunk(6, b"ghi"), events.completed()]

    scripted.script = script
    with pytest.raises(DarkroomError, match="a part of a picture is missing before offset 6"):
        client.generate("gap").image()


def test_kinds_of_events_that_are_not_known_are_skipped(scripted, client, make_events):
    unknown = events_pb2.JobEvent.FromString(bytes([0xFA, 0x06, 0x03, 0x0A, 0x01, 0x61]))  # field 111
    assert unknown.WhichOneof("event") is None

    def script(request, context):
        first, *rest = make_events(request.request_id).whole_job()
        return [first, unknown, *rest]

    scripted.script = script
    assert len(list(client.generate("a red circle"))) == 9


def test_a_stream_without_a_picture_is_an_error(scripted, client, make_events):
    scripted.script = lambda request, context: [make_events().accepted(), make_events().completed()]
    with pytest.raises(DarkroomError, match="made no picture"):
        client.generate("nothing").image()


def test_a_stream_cut_short_is_an_error(scripted, client, make_events):
    scripted.script = lambda request, context: [make_events().accepted(), make_events().image()]
    with pytest.raises(DarkroomError, match="before it was completed"):
        client.generate("cut").images()


def test_the_job_runs_from_the_call_on(scripted, client, make_events):
    done = threading.Semaphore(0)

    def script(request, context):
        yield from make_events(request.request_id).whole_job()
        done.release()

    scripted.script = script
    streams = [client.generate(prompt, request_id=prompt) for prompt in "abc"]
    assert all(done.acquire(timeout=30) for _ in streams)
    assert [stream.image().request_id for stream in reversed(streams)] == ["c", "b", "a"]


class TestAsync:
    def test_generate(self, async_client):
        async def main():
            async with async_client as client:
                stream = client.generate("a red circle")
                return [type(event) async for event in stream], await stream.image()

        kinds, image = asyncio.run(main())
        assert (len(kinds), image.seed) == (9, 7)

    def test_reading_one_event_leaves_the_job(self, async_client):
        async def main():
            async with async_client as client:
                stream = client.generate("a red circle")
                first = await anext(aiter(stream))
                gc.collect()
                second = await anext(stream)
                return first, second, await stream.image()

        first, second, image = asyncio.run(main())
        assert (type(first), type(second), image.seed) == (Accepted, Step, 7)

    def test_several_readers_of_one_stream(self, async_client):
        async def main():
            async with async_client as client:
                stream = client.generate("a red circle")
                return await asyncio.gather(stream.image(), stream.images(), anext(stream))

        image, images, event = asyncio.run(main())
        assert images == [image]
        assert event.request_id == image.request_id

    def test_many_at_once(self, async_client):
        async def main():
            async with async_client as client:
                images = [client.generate(f"{n}", request_id=f"{n}").image() for n in range(20)]
                return [image.request_id for image in await asyncio.gather(*images)]

        assert asyncio.run(main()) == [f"{n}" for n in range(20)]


def test_no_server():
    with Client("127.0.0.1:1") as client, pytest.raises(ServerUnreachable, match="darkroom serve") as caught:
        client.generate("nobody").image()
    assert caught.value.code == "UNAVAILABLE"
    with Client("127.0.0.1:1") as client, pytest.raises(ServerUnreachable, match="no Darkroom server answers"):
        client.models()


def test_a_connection_that_is_lost_says_so(scripted, client, make_events):
    def script(request, context):
        yield make_events(request.request_id).accepted()
        context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    scripted.script = script
    with pytest.raises(ServerUnreachable, match=r"was lost \(Socket closed\)"):
        client.generate("lost").image()
