"""Too little memory: batches go on in parts, limits are learnt, and only what fits nowhere fails."""

import asyncio
import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, EulerDiscreteScheduler, StableDiffusionPipeline
from diffusers.models.autoencoders.vae import Decoder
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2DCrossAttn
from grpc import StatusCode
from transformers import CLIPTextModel

from darkroom.v1 import parameters_pb2 as pb
from darkroom.v1.edits_pb2 import ImageToImage, Inpaint
from darkroom.v1.parameters_pb2 import ControlSpec, LoraSpec
from darkroom_plugins.errors import PluginFailed
from darkroom_server.engine.recovery import PATIENCE, Recovery
from darkroom_server.networks.traced import _Traced
from tests.support import RunningServer, Stream, details, edit_request, generate_request, png

NOISE = np.random.default_rng(2)
PICTURE = png(NOISE.integers(0, 256, (32, 32, 3), np.uint8))
MASK = png(np.pad(np.full((16, 16), 255, np.uint8), 8))
CONTROL = {"controls": [ControlSpec(model="sd-edges", image=PICTURE)]}
LORA = {"loras": [LoraSpec(name="sd-unet-a", weight=0.8)]}
BURST: list[dict[str, Any]] = [
    *({"scheduler": name} for name in ("ddim", "euler", "heun", "pndm", "unipc", "dpmpp-2m", "euler-ancestral", "lms")),
    {"guidance_scale": 1.0},
    {"guidance_scale": 1.0, "scheduler": "ddpm", "num_images": 2},
    {"guidance_rescale": 0.7, "scheduler": "dpmpp-2m-sde"},
    {"image": PICTURE, "image_to_image": ImageToImage(strength=0.7)},
    {"image": PICTURE, "inpaint": Inpaint(mask=MASK), "scheduler": "ddim", **CONTROL},
    {"controls": [ControlSpec(model="sd-edges", image=PICTURE, guess_mode=True)]},
    LORA,
    {"scheduler": "deis", "num_images": 2, **LORA},
]


class Shortage:
    """Has a method of a class fail like an allocation, for what does not fit: its first argument or itself."""

    def __init__(self, patch: pytest.MonkeyPatch, kind: type, method: str, fits: Callable[[Any], bool]) -> None:
        self.failed = self.pinned = 0
        self.over = False
        self._last: Callable[[], Any] = lambda: None
        whole = getattr(kind, method)

        def short(instance: Any, first: Any, *arguments: Any, **more: Any) -> Any:
            self.pinned += self._last() is not None
            if self.over or fits(first):
                return whole(instance, first, *arguments, **more)
            self.failed += 1
            self._last = weakref.ref(first)
            raise torch.OutOfMemoryError("CUDA out of memory")

        patch.setattr(kind, method, short)


@pytest.fixture(autouse=True)
def without_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is patched here is run by Python."""
    monkeypatch.setattr(_Traced, "_fixed_outputs", lambda self: None)


@pytest.fixture
def server(edit_server: RunningServer) -> Iterator[RunningServer]:
    """One that knows nothing of its memory yet."""
    edit_server.app.engine.recovery.limits.forget()
    yield edit_server
    edit_server.app.engine.recovery.limits.forget()
    assert edit_server.app.jobs.active_jobs == 0
    assert edit_server.app.engine.idle


def request(seed: int = 0, **parameters: Any) -> Any:
    make = edit_request if "image" in parameters else generate_request
    return make(**{"model": "sd", "prompt": f"picture {seed}", "seed": seed, "num_inference_steps": 5, **parameters})


@contextlib.contextmanager
def held(server: RunningServer) -> Iterator[None]:
    """The engine waits, so that all that is asked for meanwhile begins together."""
    gate = threading.Event()
    call = asyncio.run_coroutine_threadsafe(server.app.engine.call(gate.wait), server._loop)
    try:
        yield
    finally:
        gate.set()
        call.result(60)


def together(server: RunningServer, requests: Sequence[Any]) -> list[Stream]:
    with held(server):
        streams = [server.start(each) for each in requests]
        for stream in streams:
            stream.read_until("accepted")
        while server.app.engine._inbox.qsize() < len(streams):  # until all are planned
            time.sleep(0.001)
    return streams


def reason(stream: Stream) -> tuple[StatusCode, str]:
    """How a stream that must fail does."""
    with pytest.raises(grpc.RpcError) as caught:
        stream.read()
    return caught.value.code(), details(caught.value)[0]


OUT_OF_MEMORY = (StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY")


@pytest.fixture(scope="module")
def expected(edit_server: RunningServer) -> list[np.ndarray]:
    """The burst's pictures where memory is plenty."""
    requests = [request(seed, **{"num_inference_steps": 3 + seed % 5, **each}) for seed, each in enumerate(BURST)]
    return [stream.read().pixels for stream in together(edit_server, requests)]


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
def test_a_burst_ends_right_however_few_rows_fit(
    rows: int, server: RunningServer, expected: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The denoiser and ControlNets fail in their middle, where they hold most."""
    requests = [request(seed, **{"num_inference_steps": 3 + seed % 5, **each}) for seed, each in enumerate(BURST)]
    shortage = Shortage(monkeypatch, UNetMidBlock2DCrossAttn, "forward", lambda hidden: len(hidden) <= rows)
    ticks = server.app.engine.ticks
    gc.disable()  # what failed must be free at once
    try:
        streams = [stream.read() for stream in together(server, requests)]
    finally:
        gc.enable()
    for stream, pixels in zip(streams, expected, strict=True):
        assert stream.kinds[-1] == "completed"
        assert np.abs(stream.pixels - pixels).max() <= 1
    assert server.app.engine.ticks - ticks > 20
    assert 2 <= shortage.failed <= 7  # 32 rows in halves at the first tick, and a trial after many good ones
    assert shortage.pinned == 0


def test_waiting_jobs_are_told_their_place_by_what_fits(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    Shortage(monkeypatch, UNetMidBlock2DCrossAttn, "forward", lambda hidden: len(hidden) <= 2)
    running = together(server, [request(seed, num_inference_steps=40) for seed in range(2)])
    running[0].read_until("step")
    waiting = [server.start(request(seed)) for seed in range(2)]
    assert sorted(stream.read_until("queued").position for stream in waiting) == [0, 1]
    for stream in (*running, *waiting):
        assert stream.read().kinds[-1] == "completed"
        assert sum(step.batch_rows > 2 for step in stream.of("step")) <= 2  # at first, and when more is tried


# --------------------------------------------------------------------------------------------- what fits nowhere


def test_what_fits_nowhere_fails_alone(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [server.start(request(seed)).read().pixels for seed in range(6)]
    shortage = Shortage(monkeypatch, ControlNetModel, "forward", lambda latents: False)
    requests = [request(seed) for seed in range(6)]
    *others, culprit = together(server, [*requests[:3], request(7, **CONTROL), *requests[3:], request(8, **CONTROL)])
    fine, culprits = [*others[:3], *others[4:]], [others[3], culprit]
    assert [reason(each) for each in culprits] == [OUT_OF_MEMORY] * 2
    for stream, pixels in zip(fine, alone, strict=True):
        assert np.abs(stream.read().pixels - pixels).max() <= 1
        assert {step.batch_rows for step in stream.of("step")[1:]} == {12}  # nothing was learnt from the culprit
    assert shortage.failed <= 30


def test_one_size_that_does_not_fit_hurts_no_other(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = server.start(request()).read().pixels
    Shortage(monkeypatch, UNetMidBlock2DCrossAttn, "forward", lambda hidden: hidden.shape[-1] <= 8)
    small, large = together(server, [request(), request(width=64, height=64)])
    assert reason(large) == OUT_OF_MEMORY
    assert np.abs(small.read().pixels - alone).max() <= 1


PLACES: dict[str, tuple[type, str, dict[str, Any]]] = {
    "prompt": (CLIPTextModel, "forward", {}),
    "begin": (AutoencoderKL, "encode", {"image": PICTURE, "image_to_image": ImageToImage(strength=0.7)}),
    "evaluation": (UNetMidBlock2DCrossAttn, "forward", LORA),
    "step": (EulerDiscreteScheduler, "step", {"scheduler": "euler", "deterministic": True}),
    "decoding": (Decoder, "forward", {}),
}


@pytest.mark.parametrize("place", PLACES)
def test_room_is_made_and_the_work_tried_once_more(
    place: str, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, method, parameters = PLACES[place]
    engine, given = server.app.engine, {"prompt": place, "num_images": 2, **parameters}
    alone = server.start(request(**given)).read().pixels
    engine.prompts.clear()
    shortage = Shortage(monkeypatch, kind, method, lambda first: False)
    held_then = []

    def relieve() -> bool:
        shortage.over = True
        held_then.append((len(engine._prompts._kept), len(engine._plugins.adapters["lora"]._sets)))
        return True

    monkeypatch.setattr(engine, "_relieve", relieve)
    stream = server.start(request(**given)).read()
    assert np.abs(stream.pixels - alone).max() <= 1
    assert held_then == [(0, 0)]
    assert 1 <= shortage.failed <= 3
    assert not engine.recovery.limits._limits


@pytest.mark.parametrize("place", PLACES)
def test_where_no_room_is_to_be_made_one_job_fails(
    place: str, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, method, parameters = PLACES[place]
    server.app.engine.prompts.clear()
    shortage = Shortage(monkeypatch, kind, method, lambda first: False)
    assert reason(server.start(request(prompt=place, **parameters))) == OUT_OF_MEMORY
    assert 2 <= shortage.failed <= 7  # prompts are tried together first
    shortage.over = True
    assert server.start(request(prompt=place, **parameters)).read().kinds[-1] == "completed"


# ------------------------------------------------------------------------------------------- decoding and previews


def test_pictures_are_decoded_one_by_one(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = server.start(request(num_images=16)).read()
    shortage = Shortage(monkeypatch, Decoder, "forward", lambda latents: len(latents) <= 1)
    stream = server.start(request(num_images=16)).read()
    assert np.abs(stream.pixels - alone.pixels).max() <= 1
    assert stream.of("completed")[0].warnings == []
    assert shortage.failed == 3
    assert shortage.pinned == 0


def test_a_picture_that_does_not_fit_is_decoded_in_tiles(
    server: RunningServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(folder / "sd", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    asked = {"prompt": "x", "width": 64, "height": 48, "num_inference_steps": 4, "guidance_scale": 5.0}
    pictures = []
    for switch in (pipe.vae.disable_tiling, pipe.vae.enable_tiling):
        switch()
        pictures.append(np.asarray(pipe(**asked, generator=torch.Generator().manual_seed(3)).images[0], dtype=int))
    whole, tiled = pictures
    shortage = Shortage(monkeypatch, Decoder, "forward", lambda latents: max(latents.shape[-2:]) <= 16)
    stream = server.start(request(3, **asked, num_images=2)).read()
    assert np.abs(stream.pixels[0] - tiled).max() <= 1
    assert np.abs(whole - tiled).max() > 1
    assert any("tiles" in warning for warning in stream.of("completed")[0].warnings)
    first = shortage.failed
    assert server.start(request(3, **asked)).read().kinds[-1] == "completed"
    assert shortage.failed == first  # it is known by now
    server.app.engine.recovery.limits.forget()
    shortage.over = True
    again = server.start(request(3, **asked)).read()
    assert np.abs(again.pixels[0] - whole).max() <= 1
    assert again.of("completed")[0].warnings == []


def test_previews_that_do_not_fit_are_left_out_and_not_tried_each_time(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = 0

    def fail(latents: torch.Tensor) -> torch.Tensor:
        nonlocal attempts
        attempts += 1
        raise torch.OutOfMemoryError

    monkeypatch.setitem(server.app.previews.built, ("sd", "full-vae"), fail)
    preview = pb.PreviewOptions(mode=pb.PREVIEW_MODE_FULL_VAE)
    stream = server.start(request(num_inference_steps=20, num_images=4, preview=preview)).read()
    assert stream.of("preview") == []
    assert len(stream.of("completed")[0].warnings) == 1
    assert attempts < 12


# -------------------------------------------------------------------------------------------------------- row limits


class Device:
    """Runs what fits."""

    def __init__(self, fits: int) -> None:
        self.fits = fits
        self.failed = 0

    def run(self, items: Sequence[int]) -> list[int]:
        if len(items) > self.fits:
            self.failed += 1
            raise MemoryError
        return [-item for item in items]


@pytest.mark.parametrize("fits", range(1, 33))
def test_failed_attempts_grow_rare(fits: int) -> None:
    device, recovery = Device(fits), Recovery(lambda: False)
    for _ in range(10_000):
        assert recovery.each("work", device.run, range(32)) == [-item for item in range(32)]
    assert device.failed <= 5 + 9  # the first time; then after 64 runs, 128 more, 256 more, …
    assert recovery.limits.of("work", 32) > fits // 2


def test_a_limit_is_raised_when_more_fits() -> None:
    device, recovery = Device(4), Recovery(lambda: False)
    recovery.each("work", device.run, range(32))
    device.fits = 32
    for _ in range(3 * PATIENCE):
        recovery.each("work", device.run, range(32))
    assert recovery.limits.of("work", 32) == 32
    assert recovery.limits.of("other work", 32) == 32


def test_a_batch_that_is_too_large_says_nothing_of_what_fitted() -> None:
    device, recovery = Device(8), Recovery(lambda: False)
    for _ in range(PATIENCE + 1):
        recovery.each("work", device.run, range(16))
    assert recovery.limits.of("work", 16) == 16
    recovery.each("work", device.run, range(10))  # half of which would be fewer than are known to fit
    assert recovery.limits.of("work", 16) == 8


def test_what_was_learnt_is_forgotten_when_memory_is_freed() -> None:
    device = Device(0)

    def relieve() -> bool:
        device.fits = 16
        return True

    recovery = Recovery(relieve)
    recovery.limits.lower("other work", 1)
    assert recovery.each("work", device.run, range(32)) == [-item for item in range(32)]
    assert recovery.limits.of("work", 32) > 8
    assert recovery.limits.of("other work", 32) == 32


def test_results_that_are_too_few_are_a_fault() -> None:
    outcomes = Recovery(lambda: False).each("work", lambda items: [item for item in items if item != 3], range(8))
    assert [isinstance(each, PluginFailed) for each in outcomes] == [item == 3 for item in range(8)]
