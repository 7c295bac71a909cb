"""Long work is divided: between two layers other jobs are heard, have their turns, and can be cancelled."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image

from darkroom.v1.catalog_service_pb2 import ListModelsRequest
from darkroom.v1.edits_pb2 import ImageToImage
from darkroom.v1.image_service_pb2 import CancelRequest
from darkroom_server.engine import long_work, queue_positions
from tests.support import RunningServer, edit_request, generate_request, png, refused, settle

LARGE = {"width": 64, "height": 64, "num_inference_steps": 2, "request_id": "large"}
SMALL = {"width": 32, "height": 32, "num_inference_steps": 3, "request_id": "small"}


@pytest.fixture
def server(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningServer]:
    """One that attends to others between all layers."""
    monkeypatch.setattr(long_work, "LONG_SECONDS", 0.0)
    monkeypatch.setattr(long_work, "PIECE_SECONDS", 0.0)
    monkeypatch.setattr(queue_positions, "INTERVAL", 0.0)
    monkeypatch.setattr(queue_positions, "INTERVAL_PER_JOB", 0.0)
    with RunningServer(models=[{"name": "tiny", "path": tiny_model, "default_preview_mode": "off"}]) as running:
        yield running


def first_call(layer: torch.nn.Module, large: int, then: Callable[[], object]) -> None:
    """Call `then` on the engine's thread when the layer is first called for a picture whose input is so wide."""

    def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].shape[-1] == large:
            handle.remove()
            then()

    handle = layer.register_forward_pre_hook(hook)


def vae(server: RunningServer) -> Any:
    return server.app.catalog.models["tiny"].family.components["vae"]


def unet(server: RunningServer) -> Any:
    return server.app.catalog.models["tiny"].family.components["unet"]


def pending(server: RunningServer) -> None:
    """Wait until the engine's inbox has something."""
    while server.app.engine.pending == 0:
        threading.Event().wait(0.001)


def begin_small(server: RunningServer, done: threading.Event, until: str = "completed") -> None:
    """Have another client ask for a small picture, and wait until the engine could know of it."""

    def ask() -> None:
        stream = server.start(generate_request(**SMALL))
        stream.read_until(until)
        done.set()
        stream.read()

    threading.Thread(target=ask).start()
    pending(server)


def test_other_jobs_are_done_while_a_large_picture_is_decoded(server: RunningServer) -> None:
    done, in_time = threading.Event(), []
    first_call(vae(server).decoder.conv_in, 32, lambda: begin_small(server, done))
    first_call(vae(server).decoder.conv_out, 64, lambda: in_time.append(done.wait(60)))
    beside = server.start(generate_request(**LARGE, seed=3)).read()
    assert in_time == [True]
    assert np.array_equal(server.start(generate_request(**LARGE, seed=3)).read().pixels, beside.pixels)


def test_a_job_that_waits_for_an_evaluation_hears_of_it(server: RunningServer) -> None:
    queued, in_time = threading.Event(), []
    first_call(unet(server).conv_in, 32, lambda: begin_small(server, queued, until="queued"))
    first_call(unet(server).conv_out, 32, lambda: in_time.append(queued.wait(60)))
    server.start(generate_request(**LARGE)).read()
    assert in_time == [True]
    settle(server)


@pytest.mark.parametrize("phase", ["evaluation", "decode"])
def test_a_cancelled_job_costs_no_more_than_the_layer_that_runs(server: RunningServer, phase: str) -> None:
    network = unet(server) if phase == "evaluation" else vae(server).decoder
    reached: list[bool] = []

    def cancel() -> None:
        threading.Thread(target=lambda: server.images.Cancel(CancelRequest(request_id="large"))).start()
        pending(server)

    first_call(network.conv_in, 32, cancel)
    first_call(network.conv_out, 32 if phase == "evaluation" else 64, lambda: reached.append(True))
    assert refused(lambda: server.start(generate_request(**LARGE)).read()).code is grpc.StatusCode.CANCELLED
    settle(server)
    assert reached == []
    assert server.start(generate_request(**SMALL)).read().kinds[-1] == "completed"


def test_a_job_goes_on_when_another_of_its_batch_is_cancelled(server: RunningServer) -> None:
    def cancel() -> None:
        threading.Thread(target=lambda: server.images.Cancel(CancelRequest(request_id="other"))).start()
        pending(server)

    alone = server.start(generate_request(**LARGE, seed=3, prompt="a")).read()
    first_call(unet(server).conv_in, 32, cancel)
    stays, goes = server.together(
        [generate_request(**{**LARGE, "request_id": name}, seed=3, prompt="a") for name in ("one", "other")]
    )
    assert np.abs(stays.read().pixels - alone.pixels).max() <= 1
    assert refused(goes.read).code is grpc.StatusCode.CANCELLED


# ------------------------------------------------------------------------------------------------------ size and tiles


def test_a_models_limits_are_multiples_of_its_own_size(server: RunningServer) -> None:
    (model,) = server.catalog.ListModels(ListModelsRequest()).models
    own = model.default_width
    assert (model.max_size, model.max_pixels) == (4 * own, 4 * own * own)
    assert server.generate(width=4 * own, height=own, num_inference_steps=1).pixels.shape[2] == 4 * own
    for wide, high in ((4 * own + 8, own), (4 * own, own + 8)):
        assert (
            "parameters.width" in refused(lambda wide=wide, high=high: server.generate(width=wide, height=high)).paths
        )


@pytest.mark.slow
def test_pictures_that_would_not_fit_whole_are_made_in_tiles(tiny_model: Path) -> None:
    """Equal to diffusers' pipelines with tiling, without and with an input picture."""
    pixels = np.random.default_rng(1).integers(0, 256, (96, 128, 3), np.uint8)
    asked: dict[str, Any] = {"prompt": "x", "num_inference_steps": 4, "guidance_scale": 5.0}
    pipe: Any = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    pipe.vae.enable_tiling()
    expected = pipe(**asked, width=128, height=96, generator=torch.Generator().manual_seed(3)).images[0]
    changed: Any = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    expected_edit = changed(
        **asked, image=Image.fromarray(pixels), strength=0.6, generator=torch.Generator().manual_seed(3)
    ).images[0]
    model = {"name": "tiny", "path": tiny_model, "max_edge": 256, "max_pixels": 256 * 256}
    with RunningServer(models=[model], max_decode_bytes=2**20) as server:
        made = server.generate(**asked, width=128, height=96, seed=3)
        edited = server.start(
            edit_request(**asked, seed=3, image=png(pixels), image_to_image=ImageToImage(strength=0.6))
        ).read()
        small = server.generate(**asked)
        refusal = refused(lambda: server.generate(**asked, width=256, height=256))
    assert np.abs(made.pixels[0] - np.asarray(expected, int)).max() <= 1
    assert np.abs(edited.pixels[0] - np.asarray(expected_edit, int)).max() <= 1
    assert ["decoded in tiles" in warning for warning in made.of("completed")[0].warnings] == [True]
    assert ["in tiles" in warning for warning in edited.of("completed")[0].warnings] == [True, True]
    assert small.of("completed")[0].warnings == []
    assert "MiB to decode" in refusal.violations["parameters.width"]
