"""Calls leave no cycles of references: all that one holds would stay until a full collection, for minutes."""

import gc
import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import httpx2
import numpy as np
import pytest

import darkroom_plugins
import darkroom_server
from tests.support import RunningServer, Stream, generate_request, png, settle

CALLS = 5
PICTURE = png(np.zeros((32, 32, 3), np.uint8))
OURS = ("darkroom_server", "darkroom_plugins", "darkroom.v1")
FILES = tuple(str(Path(each.__file__).parent) for each in (darkroom_server, darkroom_plugins))


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[RunningServer]:
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], http="127.0.0.1:0") as server:
        yield server


def left(server: RunningServer, call: Callable[[], object]) -> Counter[str]:
    """What of ours only the collector of cycles frees, by type or function."""

    def ended() -> None:
        with suppress(grpc.RpcError):
            call()

    ended()  # what is made once
    settle(server)
    gc.collect()
    gc.disable()
    try:
        for _ in range(CALLS):
            ended()
        settle(server)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        return Counter(name for each in gc.garbage if (name := _name(each)))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def _name(found: Any) -> str:
    if isinstance(found, types.FrameType | types.CoroutineType | types.AsyncGeneratorType):
        code = next(getattr(found, name) for name in ("f_code", "cr_code", "ag_code") if hasattr(found, name))
        return code.co_qualname if code.co_filename.startswith(FILES) else ""
    module = str(type(found).__module__)
    return type(found).__qualname__ if module.startswith(OURS) else ""


def midway(server: RunningServer) -> None:
    stream = Stream(server.images.Generate(generate_request(num_inference_steps=40)))
    stream.read_until("accepted")
    stream.call.cancel()


def post(server: RunningServer, path: str, body: Any) -> int:
    return httpx2.post(server.app.url + path, json=body, timeout=60).status_code


WAYS: dict[str, Callable[[RunningServer], object]] = {
    "done": lambda server: server.generate(num_inference_steps=2).read(),
    "edited": lambda server: server.edit(image=PICTURE, num_inference_steps=2).read(),
    "refused": lambda server: server.generate(num_inference_steps=-1).read(),
    "no picture": lambda server: server.edit(image=b"none").read(),
    "cancelled": midway,
    "late": lambda server: server.start(generate_request(num_inference_steps=40), timeout=0.1).read(),
    "done by the images API": lambda server: post(server, "/v1/images/generations", {"prompt": "a", "size": "32x32"}),
    "refused by the images API": lambda server: post(server, "/v1/images/generations", {"prompt": 3}),
    "listed by Connect": lambda server: post(server, "/darkroom.v1.CatalogService/ListModels", {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_call_leaves_no_cycles(server: RunningServer, way: str) -> None:
    assert left(server, lambda: WAYS[way](server)) == Counter()
