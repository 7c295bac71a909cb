"""Previews by a tiny VAE over the wire, against diffusers' pipeline with it."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from PIL import Image

from darkroom.v1 import catalog_service_pb2 as catalog_pb
from darkroom.v1 import parameters_pb2 as pb
from darkroom_plugins.manager import load_plugins
from darkroom_server.models import ModelError, open_models
from darkroom_server.settings import Settings
from tests.support import RunningServer, details, generate_request
from tests.tiny import save_tiny_vae

STEPS, SEED, PROMPT = 4, 7, "a cat"
REQUEST: dict[str, Any] = {"prompt": PROMPT, "seed": SEED, "num_inference_steps": STEPS, "scheduler": "ddim"}
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


def expected(folder: Path, tiny_vae: Path, size: int, seed: int) -> np.ndarray:
    """The estimates of the clean picture, (steps, height, width, 3), decoded as the pipeline decodes with this VAE."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    from diffusers import DDIMScheduler

    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    estimates = []
    step = pipe.scheduler.step

    def keep(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **{**kwargs, "return_dict": True})
        estimates.append(result.pred_original_sample)
        return (result.prev_sample,)

    pipe.scheduler.step = keep
    generator = torch.Generator().manual_seed(seed)
    pipe(PROMPT, num_inference_steps=STEPS, generator=generator, height=size, width=size, output_type="latent")
    vae = AutoencoderTiny.from_pretrained(tiny_vae)
    with torch.no_grad():
        pictures = vae.decode(torch.cat(estimates) / vae.config.scaling_factor).sample
    return (pipe.image_processor.postprocess(pictures, output_type="np") * 255).round().astype(int)


def test_previews_equal_diffusers_in_a_mixed_batch(server: RunningServer, tiny_model: Path, tiny_vae: Path) -> None:
    """Three requests together, with previews of three kinds."""
    modes = [{}, {"mode": "PREVIEW_MODE_LATENT_RGB"}, {"mode": "PREVIEW_MODE_FULL_VAE"}]
    size = {"width": 64, "height": 64}  # smaller previews would be enlarged
    requests = [
        generate_request(preview={**mode, **PNG}, **{**REQUEST, "seed": SEED + index}, **size)
        for index, mode in enumerate(modes)
    ]
    streams = [server.start(request) for request in requests]
    streams = [stream.read() for stream in streams]
    decoders = [{preview.decoder for preview in stream.of("preview")} for stream in streams]
    assert decoders == [{pb.PREVIEW_MODE_TINY_VAE}, {pb.PREVIEW_MODE_LATENT_RGB}, {pb.PREVIEW_MODE_FULL_VAE}]
    alone = server.generate(preview={"mode": "PREVIEW_MODE_TINY_VAE", **PNG}, **REQUEST, **size)
    steps = [preview.step - 1 for preview in sorted(streams[0].of("preview"), key=lambda preview: preview.step)]
    wanted = expected(tiny_model, tiny_vae, 64, SEED)
    assert wanted.std() > 20
    assert np.abs(previews(streams[0]) - wanted[steps]).max() <= 1
    last = alone.of("preview")[-1]
    assert (last.width, last.height, last.step) == (64, 64, STEPS)
    assert np.abs(previews(alone)[-1] - wanted[-1]).max() <= 1
