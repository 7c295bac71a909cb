"""Models from every kind of source give through the server the pictures that diffusers makes of it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from huggingface_hub import constants

from darkroom.v1.events_pb2 import LOADING_PHASE_DOWNLOAD
from darkroom.v1.parameters_pb2 import ControlSpec, LoraSpec
from darkroom_server.models.model import ModelError
from tests.checkpoints import COMMIT, save_checkpoint, save_to_cache
from tests.hub import Hub
from tests.support import RunningServer, alike, generate_request, png
from tests.tiny import save_controlnet, save_lora, save_sd
from tests.tiny_sdxl import save_sdxl

BASE = {"prompt": "a red circle", "num_inference_steps": 4, "guidance_scale": 5.0, "seed": 7}
PIPELINES = {"sd": diffusers.StableDiffusionPipeline, "sdxl": diffusers.StableDiffusionXLPipeline}
MAX_LEVELS = 1


@pytest.fixture(scope="module")
def patched() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, patched: pytest.MonkeyPatch) -> Path:
    """Models of both families in each kind of source, all with weights of their own; the hub's cache, offline."""
    folder = tmp_path_factory.mktemp("sources")
    for family, save in (("sd", save_sd), ("sdxl", save_sdxl)):
        for seed, source in enumerate(("plain", "file", "hub"), start=3):
            save(folder / f"{family}-{source}", seed=seed)
        save_checkpoint(folder / f"{family}.safetensors", folder / f"{family}-file")
        save_to_cache(folder / "cache", folder / f"{family}-hub", f"tiny/{family}")
        other = diffusers.DiffusionPipeline.from_pretrained(save(folder / f"{family}-other", seed=9))
        other.to(torch.float16).save_pretrained(folder / f"{family}-plain", variant="fp16")
    save_sd(folder / "vae", seed=12)
    patched.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    patched.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def settings(folder: Path, family: str) -> dict[str, dict[str, Any]]:
    """Of each source what the operator sets."""
    plain, file = folder / f"{family}-plain", folder / f"{family}.safetensors"
    return {
        "plain": {"path": plain},
        "fp16": {"path": plain, "variant": "fp16"},
        "file": {"path": file, "config": folder / f"{family}-plain"},
        "hub": {"path": f"hub:tiny/{family}@{COMMIT}"},
        "vae": {"path": file, "config": folder / f"{family}-plain", "vae": folder / "vae" / "vae"},
    }


def pipeline(folder: Path, family: str, source: str) -> Any:
    """The same as diffusers loads it."""
    plain, kind = folder / f"{family}-plain", PIPELINES[family]
    options: dict[str, Any] = {"dtype": torch.float32}
    if source == "vae":
        options["vae"] = diffusers.AutoencoderKL.from_pretrained(folder / "vae" / "vae")
    if source in ("file", "vae"):
        return kind.from_single_file(str(folder / f"{family}.safetensors"), config=str(plain), **options)
    if source == "hub":
        return kind.from_pretrained(f"tiny/{family}", cache_dir=folder / "cache", **options)
    return kind.from_pretrained(plain, variant="fp16" if source == "fp16" else None, **options)


@pytest.fixture(scope="module")
def sources(folder: Path) -> Iterator[RunningServer]:
    listed = [
        {"name": f"{family}-{source}", "preload": False, **each}
        for family in PIPELINES
        for source, each in settings(folder, family).items()
    ]
    with RunningServer(models=listed) as running:
        yield running


def refused(*_: object) -> None:
    raise AssertionError("torch's default dtype is that of the whole process")


def picture(pipe: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    arguments = {key: value for key, value in BASE.items() if key != "seed"}
    generator = torch.Generator().manual_seed(int(BASE["seed"]))
    return np.asarray(pipe(generator=[generator], **arguments).images[0], dtype=int)


@pytest.mark.parametrize("family", PIPELINES)
def test_pictures_equal_diffusers(
    family: str, sources: RunningServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {source: picture(pipeline(folder, family, source)) for source in settings(folder, family)}
    with monkeypatch.context() as loading:
        loading.setattr(torch, "set_default_dtype", refused)
        made = {source: sources.generate(model=f"{family}-{source}", **BASE).pixels[0] for source in expected}
    for source, pixels in made.items():
        assert np.abs(pixels - expected[source]).max() <= MAX_LEVELS, source
        others = [np.abs(pixels - each).max() for other, each in expected.items() if other != source]
        assert min(others) > 8, "the case cannot fail"


def test_a_model_is_downloaded_when_it_is_asked_for(folder: Path, tmp_path: Path, patched: pytest.MonkeyPatch) -> None:
    with Hub(folder / "sd-plain", "tiny/new") as hub, patched.context() as online:
        hub.reached(online)
        online.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        listed = {"name": "new", "path": f"hub:tiny/new@{COMMIT}", "variant": "fp16", "preload": False}
        with RunningServer(models=[listed]) as server:
            assert not [name for name in hub.downloads if name.endswith("safetensors")]
            stream = server.start(generate_request(model="new", **BASE))
            loading = stream.read_until("loading")
            assert (loading.phase, loading.bytes_done) == (LOADING_PHASE_DOWNLOAD, 0)
            hub.serving.set()
            stream.read()
            weights = [name for name in hub.downloads if name.endswith("safetensors")]
            assert sorted(weights) == [
                "text_encoder/model.fp16.safetensors",
                "unet/diffusion_pytorch_model.fp16.safetensors",
                "vae/diffusion_pytorch_model.fp16.safetensors",
            ]
            assert loading.bytes_total == sum((folder / "sd-plain" / name).stat().st_size for name in weights)
            expected = picture(pipeline(folder, "sd", "fp16"))
            assert np.abs(stream.pixels[0] - expected).max() <= MAX_LEVELS
        hub.downloads.clear()
        online.setattr(constants, "HF_HUB_OFFLINE", True)
        with RunningServer(models=[listed]) as server:
            assert alike(server.generate(model="new", **BASE).pixels, stream.pixels)
        assert not hub.downloads


def test_what_goes_with_models_comes_from_the_hub_too(
    folder: Path, tmp_path: Path, patched: pytest.MonkeyPatch
) -> None:
    """Over the network, then from the cache without one: the pictures are those of the same files here."""
    save_controlnet(folder / "whole" / "net", folder / "sd-plain", seed=1)
    save_lora(folder / "whole" / "ink.safetensors", folder / "sd-plain", 2)
    shutil.copytree(folder / "vae" / "vae", folder / "whole", dirs_exist_ok=True)
    shutil.copytree(folder / "sd-plain", folder / "whole" / "sd", ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copy(folder / "sd.safetensors", folder / "whole" / "sd.safetensors")
    (folder / "whole" / "old.bin").write_bytes(b"a pickle")

    def offered(root: str) -> dict[str, Any]:
        vae = {"vae": root.rstrip("/")}
        return {
            "models": [{"name": "m", "path": f"{root}sd.safetensors", "config": f"{root}sd", **vae}],
            "controlnets": [{"name": "net", "path": f"{root}net"}],
            "loras": [{"name": "ink", "path": f"{root}ink.safetensors"}],
        }

    def pictures(server: RunningServer) -> list[np.ndarray]:
        image = png(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
        extra = [{}, {"controls": [ControlSpec(model="net", image=image)]}, {"loras": [LoraSpec(name="ink", weight=1)]}]
        return [server.generate(**BASE, **each).pixels for each in extra]

    with RunningServer(**offered(f"{folder}/whole/")) as server:
        expected = pictures(server)
    assert all(np.abs(each - expected[0]).max() > 8 for each in expected[1:])
    place = f"hub:tiny/whole@{COMMIT}/"
    with Hub(folder / "whole", "tiny/whole") as hub, patched.context() as online:
        hub.reached(online)
        hub.serving.set()
        online.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        listed = offered(place)
        with RunningServer(**listed) as server:
            assert all(map(alike, pictures(server), expected))
        assert len(hub.downloads) == len(set(hub.downloads)), "something was fetched twice"
        assert "old.bin" not in hub.downloads
        hub.downloads.clear()
        online.setattr(constants, "HF_HUB_OFFLINE", True)
        with RunningServer(**listed) as server:
            assert all(map(alike, pictures(server), expected))
        assert not hub.downloads
        for name in ("none", "none.safetensors"):
            nets = [{"name": "x", "path": place + name}]
            with pytest.raises(ModelError, match="controlnet 'x': hub: tiny/whole"):
                RunningServer(models=listed["models"], controlnets=nets).__enter__()


def test_a_server_of_a_mismatched_checkpoint_does_not_start(folder: Path) -> None:
    wrong = {"name": "wrong", "path": folder / "sdxl.safetensors", "config": folder / "sd-plain"}
    with pytest.raises(ModelError, match=r"model 'wrong': .* unet: .*; .* is Stable Diffusion XL"):
        RunningServer(models=[wrong]).__enter__()
