"""Previews by a tiny VAE over the wire, against diffusers' pipeline with it."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline
from PIL import Image

from darkroom.v1 import catalog_service_pb2 as catalog_pb
from darkroom.v1 import parameters_pb2 as pb
from darkroom_plugins.manager import load_plugins
from darkroom_server.config.settings import Settings
from darkroom_server.models.model import ModelError
from darkroom_server.models.opening import open_models
from tests.support import RunningServer, details, generate_request
from tests.tiny import save_tiny_vae

STEPS, SEED, SIZE, PROMPT = 25, 7, 64, "a cat"  # smaller previews would be enlarged
REQUEST: dict[str, Any] = {
    "prompt": PROMPT,
    "seed": SEED,
    "num_inference_steps": STEPS,
    "scheduler": "ddim",
    "width": SIZE,
    "height": SIZE,
}
PNG = {"format": "IMAGE_FORMAT_PNG"}


@pytest.fixture(scope="module")
def tiny_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that scales latents, as pipelines ask it to, so that leaving that out shows."""
    return save_tiny_vae(tmp_path_factory.mktemp("models") / "tiny-vae", scaling_factor=0.5)


@pytest.fixture(scope="module")
def server(tiny_model: Path, tiny_vae: Path) -> Iterator[RunningServer]:
    plain = {"name": "plain", "path": tiny_model}
    quick = {**plain, "name": "quick", "tiny_vae": tiny_vae, "default_preview_mode": "tiny-vae"}
    with RunningServer(models=[quick, plain]) as running:
        yield running


def previews(stream: Any) -> np.ndarray:
    """(previews, height, width, 3), in the order of steps."""
    sent = sorted(stream.of("preview"), key=lambda preview: preview.step)
    for preview in sent:
        picture = Image.open(io.BytesIO(preview.image_bytes))
        assert picture.size == (preview.width, preview.height)
    return np.stack([np.asarray(Image.open(io.BytesIO(p.image_bytes)), dtype=int) for p in sent])


@pytest.fixture(scope="module")
def expected(tiny_model: Path, tiny_vae: Path) -> np.ndarray:
    """The estimates of the clean picture, (steps, height, width, 3), as the pipeline shows latents with this VAE."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    step, estimates = pipe.scheduler.step, []

    def keep(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **{**kwargs, "return_dict": True})
        estimates.append(result.pred_original_sample)
        return (result.prev_sample,)

    pipe.scheduler.step = keep
    generator = torch.Generator().manual_seed(SEED)
    pipe(PROMPT, num_inference_steps=STEPS, generator=generator, height=SIZE, width=SIZE, output_type="latent")
    vae = AutoencoderTiny.from_pretrained(tiny_vae)
    with torch.no_grad():
        pictures = vae.decode(torch.cat(estimates) / vae.config.scaling_factor).sample
    return (pipe.image_processor.postprocess(pictures, output_type="np") * 255).round().astype(int)


def test_previews_equal_diffusers_whoever_shares_the_batch(server: RunningServer, expected: np.ndarray) -> None:
    modes = ["UNSPECIFIED", "LATENT_RGB", "FULL_VAE", "TINY_VAE"]  # unset: the model's own, which is its tiny VAE
    requests = [
        generate_request(preview={"mode": f"PREVIEW_MODE_{mode}", **PNG}, **{**REQUEST, "seed": SEED + index % 3})
        for index, mode in enumerate(modes)
    ]
    streams = [stream.read() for stream in [server.start(request) for request in requests]]
    assert all(max(step.batch_rows for step in stream.of("step")) > 2 for stream in streams)
    decoders = [{pb.PreviewMode.Name(preview.decoder) for preview in stream.of("preview")} for stream in streams]
    assert decoders == [{f"PREVIEW_MODE_{mode}"} for mode in ("TINY_VAE", *modes[1:])]
    assert expected.std() > 20
    for stream in (streams[0], streams[3]):
        steps = [preview.step - 1 for preview in stream.of("preview")]
        assert steps[-1] == STEPS - 1
        assert np.abs(previews(stream) - expected[steps]).max() <= 1
    assert np.abs(streams[0].pixels - expected[-1]).mean() > 20  # it is not the model's own decoder that is shown


def test_models_with_one_offer_the_mode(server: RunningServer) -> None:
    models = {model.name: model for model in server.catalog.ListModels(catalog_pb.ListModelsRequest()).models}
    quick, plain = models["quick"], models["plain"]
    modes = [pb.PREVIEW_MODE_OFF, pb.PREVIEW_MODE_LATENT_RGB, pb.PREVIEW_MODE_TINY_VAE, pb.PREVIEW_MODE_FULL_VAE]
    assert (list(quick.preview_modes), quick.default_preview_mode) == (modes, pb.PREVIEW_MODE_TINY_VAE)
    assert pb.PREVIEW_MODE_TINY_VAE not in plain.preview_modes
    assert quick.weight_bytes > plain.weight_bytes


def test_a_model_without_one_names_the_modes_that_it_has(server: RunningServer) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.generate(model="plain", preview={"mode": "PREVIEW_MODE_TINY_VAE"}, **REQUEST)
    reason, violations, _ = details(caught.value)
    assert reason == "UNSUPPORTED_COMBINATION"
    assert violations == {"preview.mode": "the model plain has no previews tiny-vae; it has: off, latent-rgb, full-vae"}


def wide(folder: Path) -> Path:
    return save_tiny_vae(folder, latent_channels=16)


def full(folder: Path) -> Path:
    AutoencoderKL(latent_channels=4, norm_num_groups=1, block_out_channels=(1,)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("save", "problem"),
    [
        (wide, "tiny_vae: it takes latents of 16 channels; the model's have 4"),
        (full, "tiny_vae: it holds AutoencoderKL, not AutoencoderTiny"),
        (lambda folder: None, "default_preview_mode: 'tiny-vae' needs tiny_vae to be set"),
    ],
)
def test_what_is_no_tiny_vae_of_this_model_is_refused_at_start(
    tiny_model: Path, tmp_path: Path, save: Callable[[Path], Path | None], problem: str
) -> None:
    given = {"tiny_vae": save(tmp_path / "tiny"), "default_preview_mode": "tiny-vae"}
    settings = Settings(models=[{"name": "x", "path": tiny_model, **given}])
    with pytest.raises(ModelError, match=f"model 'x': {problem}"):
        open_models(settings, load_plugins())
