"""Prompts of jobs that begin together are encoded together."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.support import RunningServer, generate_request

PROMPTS = ["a fox", "two foxes in the snow", "(a fox:1.4) at night", "a fox"]


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[RunningServer]:
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}]) as running:
        running.generate(prompt="warm", num_inference_steps=1)
        yield running


@pytest.fixture
def batches(server: RunningServer) -> Iterator[list[int]]:
    """How many prompts each forward of the text encoder had."""
    found: list[int] = []
    encoder = server.app.catalog.models["tiny"].family.components["text_encoder"]

    def note(_module: Any, arguments: Any, _output: Any) -> None:
        found.append(len(arguments[0]))

    handle = encoder.register_forward_hook(note)
    server.app.engine.prompts.clear()
    yield found
    handle.remove()


def request(prompt: str, **more: Any) -> Any:
    return generate_request(prompt=prompt, num_inference_steps=2, seed=3, **more)


def together(server: RunningServer, requests: Sequence[Any]) -> list[Any]:
    """The streams, or errors, of requests that the engine takes in at one moment."""
    streams = server.together(requests)
    return [read(stream) for stream in streams]


def read(stream: Any) -> Any:
    try:
        return stream.read()
    except grpc.RpcError as error:
        return error


def test_prompts_that_come_together_are_encoded_together(server: RunningServer, batches: list[int]) -> None:
    among = [stream.pixels for stream in together(server, [request(prompt) for prompt in PROMPTS])]
    assert batches == [4]  # three prompts and the empty one
    server.app.engine.prompts.clear()
    batches.clear()
    alone = [server.start(request(prompt)).read().pixels for prompt in PROMPTS]
    assert sum(batches) == 4
    for one, other in zip(alone, among, strict=True):
        assert np.abs(one - other).max() <= 1


def test_deterministic_jobs_have_theirs_encoded_alone(server: RunningServer, batches: list[int]) -> None:
    jobs = [request(prompt, deterministic=prompt == "a fox") for prompt in PROMPTS]
    first, *_, again = [stream.files() for stream in together(server, jobs)]
    assert sorted(batches) == [1, 1, 3]  # twice alone: "a fox" and the empty one
    assert first == again


def test_one_that_cannot_be_encoded_fails_alone(
    server: RunningServer, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    family = server.app.catalog.models["tiny"].family
    encode = family.encode_prompts

    def stumbling(keys: Sequence[Any]) -> Any:
        if any(len(key.texts[0][0]) > 40 for key in keys):
            raise RuntimeError("stumbled")
        return encode(keys)

    monkeypatch.setattr(family, "encode_prompts", stumbling)
    outcomes = together(server, [request(prompt) for prompt in ["a fox", "a fox " * 30, "a cat"]])
    assert [isinstance(each, grpc.RpcError) for each in outcomes] == [False, True, False]
    assert sum(batches) == 3
