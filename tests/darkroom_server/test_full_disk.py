"""A server whose disk is full: whoever needs the log is told in words, and all others go on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest

from darkroom.v1 import edits_pb2, parameters_pb2
from darkroom.v1 import image_service_pb2 as pb
from darkroom.v1.image_service_pb2_grpc import ImageServiceStub
from tests.killable import Forks, KillableServer
from tests.scraping import total
from tests.support import Stream, edit_request, generate_request, png, refused, wait_for

PICTURE = png(np.full((32, 32, 3), 128, np.uint8))
FULL = edits_pb2.ImageToImage(strength=1.0)
KEEP = parameters_pb2.DISCONNECT_POLICY_KEEP


class Full(NamedTuple):
    """A server whose disk is full, and what it has said before."""

    server: KillableServer
    images: ImageServiceStub
    before: Stream  # a kept job that was done before
    within: Stream  # one that had been accepted, and was at work


@pytest.fixture(scope="module")
def full(forks: Forks, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Full]:
    folder = tmp_path_factory.mktemp("full")
    server = KillableServer(forks, folder, models=[{"name": "tiny", "path": tiny_model}])
    server.start(limit=300_000)  # bytes of a file
    with grpc.insecure_channel(server.address) as channel:
        images = ImageServiceStub(channel)
        before = Stream(images.Generate(kept("before"), timeout=60)).read()
        within = Stream(images.Generate(kept("within", num_inference_steps=500), timeout=100))
        within.read_until("step")
        words = "x" * 9_000
        fills = (kept(f"fills-{number}", prompt=words, negative_prompt=words) for number in range(50))
        refused(lambda: [Stream(images.Generate(each, timeout=60)).read() for each in fills])
        yield Full(server, images, before, within)
    server.kill()


def kept(request_id: str, **parameters: Any) -> pb.GenerateRequest:
    given = {"prompt": "x", "num_inference_steps": 1, **parameters}
    return generate_request(request_id=request_id, disconnect_policy=KEEP, **given)


@pytest.fixture(autouse=True)
def _nothing_is_left(full: Full) -> Iterator[None]:
    yield
    for name in ("darkroom_jobs", "darkroom_streams_open"):
        wait_for(lambda name=name: total(full.server.read(), name) == 0)


def test_accepted_before(full: Full) -> None:
    made = full.within.read()
    assert (made.kinds.count("image"), made.kinds[-1]) == (1, "completed")


@pytest.mark.parametrize("rpc", ["Generate", "Edit"])
def test_kept(full: Full, rpc: str) -> None:
    given = {"prompt": "x" * 9_000, "disconnect_policy": KEEP, "request_id": f"kept-{rpc}"}
    request = generate_request(**given) if rpc == "Generate" else edit_request(image=PICTURE, **given)
    failed = refused(lambda: list(getattr(full.images, rpc)(request, timeout=60)))
    assert failed.reason in ("JOB_LOG_FULL", "JOB_LOG_UNAVAILABLE")


@pytest.mark.parametrize("rpc", ["Generate", "Edit", "Preprocess"])
def test_not_kept(full: Full, rpc: str) -> None:
    steps = {"prompt": "x", "num_inference_steps": 1}
    request = {
        "Generate": generate_request(**steps),
        "Edit": edit_request(image=PICTURE, image_to_image=FULL, **steps),
        "Preprocess": pb.PreprocessRequest(image=PICTURE, preprocessor="canny"),
    }[rpc]
    assert Stream(getattr(full.images, rpc)(request, timeout=60)).read().kinds[-1] == "completed"


def test_watch(full: Full) -> None:
    watched = Stream(full.images.Watch(pb.WatchRequest(request_id="before"), timeout=60)).read()
    assert watched.files() == full.before.files()
    assert watched.events[-1] == full.before.events[-1]
