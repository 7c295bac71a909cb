"""Checkers of what Watch promises, over recorded histories: ordered, unique, reliable, resumable."""

import asyncio
from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import grpc

from darkroom.v1 import image_service_pb2 as pb
from darkroom.v1.events_pb2 import JobEvent
from darkroom_server.api.keeper import RUN_SEQUENCES
from tests.support import Stream

KEPT = ("accepted", "image", "chunk")  # events that stay as they were sent when the server is lost


class Watched(NamedTuple):
    """An event as it was made, or as a watcher read it."""

    sequence: int
    event: Any
    key: Hashable  # of those that a newer one with the same key replaces; None: it is reliable


def check(made: Sequence[Watched], watchers: Sequence[Sequence[Sequence[Watched]]]) -> None:
    """Compare what was made with what each watcher read, by connection: each one began after the last event of the one
    before, and the last was read to the job's end.

    :raises AssertionError: a promise was not kept
    """
    by_sequence = {each.sequence: each for each in made}
    newest = {each.key: each.sequence for each in made if each.key is not None}
    needed = {each.sequence for each in made if each.key is None or newest[each.key] == each.sequence}
    for connections in watchers:
        read = [each for connection in connections for each in connection]
        for one, other in pairwise(read):
            assert one.sequence < other.sequence, f"{other.sequence} came after {one.sequence}"  # ordered, unique
        for each in read:
            assert by_sequence[each.sequence].event == each.event, f"{each.sequence} is another event"
        missing = needed - {each.sequence for each in read}
        assert not missing, f"{sorted(missing)[:5]} were not read"  # reliable, resumable


async def follow(images: Any, request: Any, accepted: Callable[[], object] = lambda: None) -> list[list[JobEvent]]:
    """Read a kept job to its end by plain calls, however often the server is lost meanwhile; by connection. A job that
    was accepted is watched, and never asked for again.

    :raises grpc.RpcError: another error than the server's absence: such as NOT_FOUND, if the job was lost
    """
    lives = list[list[JobEvent]]()
    start = images.Generate if isinstance(request, pb.GenerateRequest) else images.Edit
    after = 0
    while True:
        asked = pb.WatchRequest(request_id=request.request_id, after_sequence=after)
        call = images.Watch(asked, timeout=600) if after else start(request, timeout=600)
        lives.append([])
        try:
            async for response in call:
                lives[-1].append(response.event)
                after = response.event.sequence
                accepted()
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(0.02)
        else:
            return lives


def check_lives(lives: Sequence[Sequence[JobEvent]], again: Sequence[JobEvent]) -> Stream:
    """Check what was read of a job, by connection, while its server was lost between these; and that what stays is what
    a Watch from the first event on gets now. Returns all as one stream.

    :raises AssertionError: a promise was not kept
    """
    whole = Stream(None, [event for life in lives for event in life])
    for one, other in pairwise(whole.events):
        assert one.sequence < other.sequence, f"{other.sequence} came after {one.sequence}"
    assert whole.kinds[0] == "accepted"
    assert whole.kinds[-1] == "completed"
    assert (whole.kinds.count("accepted"), whole.kinds.count("completed")) == (1, 1)
    count = len(whole.of("accepted")[0].seeds)
    assert sorted(image.image_index for image in whole.of("image")) == list(range(count)), "not each picture once"
    done, newest = set[int](), dict[tuple[int, int], int]()  # the newest step of a run's picture
    for event in whole.events:
        if event.HasField("step"):
            step, picture = event.step.step, (event.sequence // RUN_SEQUENCES, event.step.image_index)
            assert event.step.image_index not in done, f"picture {event.step.image_index} was begun again when done"
            assert step > newest.get(picture, 0), f"step {step} came again in one run"
            newest[picture] = step
        elif event.HasField("image"):
            done.add(event.image.image_index)
    for image in whole.of("image"):
        assert len(whole.files()[image.image_index]) == image.total_bytes
    kept = [event for event in whole.events if event.WhichOneof("event") in KEPT]
    assert kept == [event for event in again if event.WhichOneof("event") in KEPT], "what was sent did not stay"
    assert again[-1] == whole.events[-1], "it ended twice"
    return whole
