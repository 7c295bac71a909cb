"""The safety policies over the wire, against diffusers' pipeline with its safety checker."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from darkroom.v1 import catalog_service_pb2 as catalog_pb
from darkroom.v1 import events_pb2 as pb
from darkroom.v1 import parameters_pb2
from darkroom_plugins import hookimpl
from darkroom_plugins.contract import Inspector
from darkroom_plugins.manager import load_plugins
from darkroom_server.config.settings import Settings
from darkroom_server.models.model import ModelError
from darkroom_server.models.opening import open_models
from tests.support import RunningServer, alike, details, generate_request, png
from tests.tiny import save_safety_checker, save_sd
from tests.tiny_sdxl import save_sdxl

IMAGES, STEPS, SEED, PROMPT = 12, 3, 5, "a cat"
PASSED, FLAGGED, BLOCKED = pb.SAFETY_VERDICT_PASSED, pb.SAFETY_VERDICT_FLAGGED, pb.SAFETY_VERDICT_BLOCKED
REQUEST: dict[str, Any] = {"prompt": PROMPT, "seed": SEED, "num_images": IMAGES, "num_inference_steps": STEPS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_safety_checker(save_sd(tmp_path_factory.mktemp("models") / "safe"))


class Blind(Inspector):
    """Cannot look at pictures whose prompt says so."""

    name = "blind"

    def inspect(self, samples, pictures):
        if any(sample.request.prompt == "boom" for sample in samples):
            raise RuntimeError("secret words")
        return [list(picture.shape) for picture in pictures]

    def finish(self, picture, request, parameters):
        assert picture.findings["blind"] == [32, 32, 3]
        return picture


class BlindPlugin:
    darkroom_api_version = 1

    @hookimpl
    def darkroom_finishers(self):
        return [Blind()]


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    models = [{"name": policy, "path": folder, "safety": policy} for policy in ("off", "flag", "block")]
    with RunningServer({"blind": BlindPlugin()}, models=models) as running:
        yield running


@pytest.fixture(scope="module")
def expected(folder: Path) -> tuple[np.ndarray, list[bool]]:
    """Diffusers' pictures, (images, height, width, 3), black where the checker found something, and where it did."""
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(SEED + index) for index in range(IMAGES)]
    made = pipe([PROMPT] * IMAGES, num_inference_steps=STEPS, generator=generators, output_type="np")
    return (made.images * 255).round().astype(int), made.nsfw_content_detected


def verdicts(stream: Any) -> list[int]:
    return [image.safety for image in stream.of("image")]


def test_flag_sends_pictures_as_they_are(server: RunningServer, expected: tuple[np.ndarray, list[bool]]) -> None:
    flagged, plain = server.generate(model="flag", **REQUEST), server.generate(model="off", **REQUEST)
    _, found = expected
    assert 2 < sum(found) < IMAGES - 2
    assert verdicts(flagged) == [FLAGGED if bad else PASSED for bad in found]
    assert verdicts(plain) == [pb.SAFETY_VERDICT_UNSPECIFIED] * IMAGES
    assert alike(flagged.pixels, plain.pixels)
    assert all(picture.max() > 0 for picture in flagged.pixels)


def test_block_sends_black_pictures_as_the_pipeline_does(
    server: RunningServer, expected: tuple[np.ndarray, list[bool]]
) -> None:
    stream = server.generate(model="block", **REQUEST)
    pictures, found = expected
    assert verdicts(stream) == [BLOCKED if bad else PASSED for bad in found]
    assert np.abs(stream.pixels - pictures).max() <= 1
    assert [picture.max() == 0 for picture in stream.pixels] == found


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_recipes_say_what_was_found(server: RunningServer, format: str) -> None:
    output = {"format": f"IMAGE_FORMAT_{format}"}
    stream = server.generate(model="block", output=output, **REQUEST)
    names = {PASSED: "passed", BLOCKED: "blocked"}
    for image, picture in zip(stream.of("image"), stream.pictures(), strict=True):
        verdict = names[image.safety]
        assert image.metadata["safety"] == verdict
        if format == "PNG":
            assert json.loads(picture.info["darkroom"])["safety"] == verdict
            line = picture.info["parameters"]
        else:
            line = picture.getexif().get_ifd(0x8769)[0x9286].removeprefix(b"UNICODE\0").decode("utf-16-be")
        assert line.endswith(f"Safety: {verdict}")
    off = server.generate(model="off", **{**REQUEST, "num_images": 1})
    assert "safety" not in off.of("image")[0].metadata
    assert "Safety" not in off.pictures()[0].info["parameters"]


def test_the_checker_sees_the_models_own_picture(server: RunningServer) -> None:
    """A finisher that darkens every corner changes no verdict, and a picture that is blocked stays black."""
    plain = server.generate(model="block", **REQUEST)
    dark = server.generate(model="block", extensions={"vignette": {"strength": 1}}, **REQUEST)
    assert verdicts(dark) == verdicts(plain)
    assert not np.array_equal(dark.pixels, plain.pixels)
    assert [picture.max() == 0 for picture in dark.pixels] == [verdict == BLOCKED for verdict in verdicts(dark)]


def test_nothing_of_a_blocked_edit_is_sent(server: RunningServer) -> None:
    """Not even what an inpainting keeps of the picture that was sent."""
    picture = np.random.default_rng(1).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    mask = np.zeros((40, 48), np.uint8)
    mask[8:24, 8:24] = 255
    inpaint = {"mask": png(mask), "padding_crop": 4, "keep_unmasked": True}
    stream = server.edit(model="block", image=png(picture), inpaint=inpaint, **REQUEST)
    assert {PASSED, BLOCKED} == set(verdicts(stream))
    assert [each.max() == 0 for each in stream.pixels] == [verdict == BLOCKED for verdict in verdicts(stream)]


def test_models_tell_their_policy_and_their_previews(server: RunningServer) -> None:
    models = {model.name: model for model in server.catalog.ListModels(catalog_pb.ListModelsRequest()).models}
    assert {name: model.safety_policy for name, model in models.items()} == {
        "off": catalog_pb.SAFETY_POLICY_OFF,
        "flag": catalog_pb.SAFETY_POLICY_FLAG,
        "block": catalog_pb.SAFETY_POLICY_BLOCK,
    }
    off, latent_rgb = parameters_pb2.PREVIEW_MODE_OFF, parameters_pb2.PREVIEW_MODE_LATENT_RGB
    assert (list(models["block"].preview_modes), models["block"].default_preview_mode) == ([off], off)
    assert models["flag"].default_preview_mode == latent_rgb
    assert models["flag"].weight_bytes > models["off"].weight_bytes  # the checker counts


def test_what_is_blocked_is_not_previewed(server: RunningServer) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.generate(model="block", preview={"mode": "PREVIEW_MODE_FULL_VAE"}, **REQUEST)
    reason, violations, _ = details(caught.value)
    assert reason == "UNSUPPORTED_COMBINATION"
    assert violations == {"preview.mode": "the model block has no previews full-vae; it has: off"}
    assert "preview" not in server.generate(model="block", **REQUEST).kinds
    assert "preview" in server.generate(model="flag", **REQUEST).kinds


def test_a_picture_that_cannot_be_looked_at_is_not_sent(server: RunningServer) -> None:
    """And its job alone fails."""
    requests = [generate_request(model="block", **{**REQUEST, "prompt": prompt}) for prompt in ("boom", PROMPT)]
    failed, kept = [server.start(request) for request in requests]
    with pytest.raises(grpc.RpcError) as caught:
        failed.read()
    assert details(caught.value)[0] == "PLUGIN_FAILED"
    assert "image" not in failed.kinds
    assert len(kept.read().of("image")) == IMAGES


@pytest.mark.parametrize("save", [save_sd, save_sdxl])
def test_a_model_without_a_checker_cannot_have_a_policy(tmp_path: Path, save: Callable[[Path], Path]) -> None:
    settings = Settings(models=[{"name": "x", "path": save(tmp_path / "plain"), "safety": "flag"}])
    with pytest.raises(ModelError, match="model 'x': safety: the model has no safety checker"):
        open_models(settings, load_plugins())


def test_a_policy_without_the_plugin_is_refused(folder: Path) -> None:
    settings = Settings(models=[{"name": "x", "path": folder, "safety": "block"}])
    with pytest.raises(ModelError, match="model 'x': safety: is 'block', but no plugin checks pictures"):
        open_models(settings, load_plugins(blocked=["safety"]))
