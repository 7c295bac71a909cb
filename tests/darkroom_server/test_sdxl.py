"""What only SDXL has: two prompts, unset and empty negative prompts, sizes. Each equals diffusers' pipeline."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import grpc
import numpy as np
import pytest
import torch

from darkroom.v1.parameters_pb2 import SizeConditioning
from tests.support import RunningServer, alike, details, generate_request
from tests.tiny_sdxl import save_sdxl

BASE = {"prompt": "a red circle", "num_inference_steps": 6, "guidance_scale": 5.0, "seed": 7}
MAX_LEVELS = 1

# Name: the request's parameters, the pipeline's, and the pipeline's with the feature off.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}, {"prompt": "z"}),
    "guidance off": ({"guidance_scale": 1.0}, {"guidance_scale": 1.0}, {}),
    "second prompt": ({"prompt_2": "green"}, {"prompt_2": "green"}, {}),
    "empty negative prompt": ({"negative_prompt": ""}, {"negative_prompt": ""}, {}),
    "negative prompts": (
        {"negative_prompt": "blur", "negative_prompt_2": "noise"},
        {"negative_prompt": "blur", "negative_prompt_2": "noise"},
        {"negative_prompt": "blur"},
    ),
    "clip skip": ({"clip_skip": 1}, {"clip_skip": 1}, {}),
    "sizes": (
        {
            "size_conditioning": SizeConditioning(
                original_width=900, original_height=700, crop_left=5, crop_top=300, target_width=640, target_height=480
            )
        },
        {"original_size": (700, 900), "crops_coords_top_left": (300, 5), "target_size": (480, 640)},
        {},
    ),
    "not square": (
        {"width": 48, "height": 24},
        {"width": 48, "height": 24},
        {"width": 48, "height": 24, "prompt": "z"},
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sdxl(tmp_path_factory.mktemp("sdxl") / "xl")


@pytest.fixture(scope="module")
def sdxl_server(folder: Path) -> Iterator[RunningServer]:
    with RunningServer(models=[{"name": "xl", "path": folder}]) as running:
        yield running


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Any:
    loaded = diffusers.StableDiffusionXLPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def oracle(pipe: Any, **arguments: Any) -> np.ndarray:
    arguments = {**BASE, **arguments}
    generator = torch.Generator().manual_seed(arguments.pop("seed"))
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    return np.asarray(pipe(generator=[generator], **arguments).images[0], dtype=int)


@pytest.mark.parametrize("name", CASES)
def test_equals_diffusers(name: str, sdxl_server: RunningServer, pipe: Any) -> None:
    asked, arguments, off = CASES[name]
    expected = oracle(pipe, **arguments)
    assert (np.abs(expected - oracle(pipe, **off)).max(-1) > 8).mean() >= 0.1, "the case cannot fail"
    size = {key: asked[key] for key in ("width", "height") if key in asked}
    others = [
        {"seed": 1, "negative_prompt": "x", "scheduler": "heun"},
        {"seed": 2, "size_conditioning": SizeConditioning(crop_left=9), "scheduler": "unipc"},
        {"seed": 3, "prompt_2": "y", "guidance_scale": 1.0},
    ]
    alone = sdxl_server.generate(**{**BASE, **asked})
    requests = [generate_request(**{**BASE, "num_inference_steps": 60, **size, **each}) for each in others]
    strangers = [sdxl_server.start(request) for request in requests]
    for stranger in strangers:
        stranger.read_until("step")
    among = sdxl_server.generate(**{**BASE, **asked})
    for stranger in strangers:
        stranger.call.cancel()
    assert max(step.batch_rows for step in among.of("step")) >= 6
    assert max(np.abs(result.pixels[0] - expected).max() for result in (alone, among)) <= MAX_LEVELS


def test_an_unset_negative_prompt_is_not_an_empty_one(sdxl_server: RunningServer) -> None:
    unset, empty = (sdxl_server.generate(**BASE, **more).pixels for more in ({}, {"negative_prompt": ""}))
    assert np.abs(unset - empty).max() > 8


def test_weighted_prompts_turn_a_word_up(sdxl_server: RunningServer) -> None:
    """Brackets are text unless they are asked to mean something; long prompts are not cut off then."""
    weighted = {"prompt_syntax": "PROMPT_SYNTAX_WEIGHTED"}
    plain = sdxl_server.generate(**BASE)
    same = sdxl_server.generate(**BASE, **weighted)
    louder = sdxl_server.generate(**{**BASE, "prompt": "a (red:1.5) circle"}, **weighted)
    literal = sdxl_server.generate(**{**BASE, "prompt": "a (red:1.5) circle"})
    assert alike(plain.pixels, same.pixels)
    for one, other in ((plain, louder), (louder, literal)):
        assert np.abs(one.pixels - other.pixels).max() > 8
    long = {**BASE, "prompt": "red " * 60}
    assert sdxl_server.generate(**long).of("completed")[0].warnings
    assert not sdxl_server.generate(**long, **weighted).of("completed")[0].warnings


def test_prompts_of_different_lengths_do_not_share_batches(sdxl_server: RunningServer) -> None:
    """Their embeddings have different shapes; each job goes on all the same."""
    weighted = {"prompt_syntax": "PROMPT_SYNTAX_WEIGHTED"}
    short = sdxl_server.start(generate_request(**{**BASE, "num_inference_steps": 30}))
    long = sdxl_server.start(generate_request(**{**BASE, "prompt": "red " * 60, "num_inference_steps": 30}, **weighted))
    for stream in (short, long):
        stream.read()
        assert stream.kinds[-1] == "completed"
        assert {step.batch_rows for step in stream.of("step")} == {2}


@pytest.mark.parametrize(
    ("field", "text"),
    [("prompt", "BREAK " * 1600), ("negative_prompt", "red " * 2000), ("prompt_2", f"(x:{'9' * 400})")],
)
def test_prompts_beyond_all_measure_are_refused(sdxl_server: RunningServer, field: str, text: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        sdxl_server.generate(**{**BASE, field: text}, prompt_syntax="PROMPT_SYNTAX_WEIGHTED")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert set(details(caught.value)[1]) == {f"parameters.{field}"}
