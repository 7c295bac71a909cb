"""What a checkpoint says of its predictions is honoured: its pictures are diffusers' with the right scheduler."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from grpc import StatusCode
from safetensors.torch import load_file, save_file

from darkroom.v1 import catalog_service_pb2 as catalog_pb
from darkroom_plugins.manager import load_plugins
from darkroom_server.config.settings import Settings
from darkroom_server.models.model import ModelError
from darkroom_server.models.opening import open_models
from tests.checkpoints import save_checkpoint
from tests.support import RunningServer, refused
from tests.tiny import save_sd
from tests.tiny_sdxl import save_sdxl

BASE = {"prompt": "a red circle", "num_inference_steps": 5, "guidance_scale": 3.0, "seed": 7}
V = {"prediction_type": "v_prediction"}
ZERO = {**V, "rescale_betas_zero_snr": True}
PIPELINES = {"sd": diffusers.StableDiffusionPipeline, "sdxl": diffusers.StableDiffusionXLPipeline}
# Of each model: the family, its file's marks and metadata, the settings, and the scheduler's options that are right.
MODELS: dict[str, tuple[str, tuple[str, ...], dict[str, str], dict[str, Any], dict[str, Any]]] = {
    "silent": ("sdxl", (), {"format": "pt"}, {}, {}),
    "v_pred": ("sdxl", ("v_pred",), {}, {}, V),
    "v_pred-ztsnr": ("sdxl", ("v_pred", "ztsnr"), {}, {}, ZERO),
    "modelspec": ("sd", (), {"modelspec.prediction_type": "v"}, {}, V),
    "architecture": ("sd", (), {"modelspec.architecture": "stable-diffusion-v2-768-v"}, {}, V),
    "configured": ("sdxl", (), {}, ZERO, ZERO),
    "agreed": ("sdxl", ("v_pred",), {}, ZERO, ZERO),
    "decided": ("sd", ("v_pred",), {"modelspec.prediction_type": "epsilon"}, V, V),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prediction")
    for family, save in (("sd", save_sd), ("sdxl", save_sdxl)):
        save_checkpoint(folder / f"{family}.safetensors", save(folder / family))
    for name, (family, marks, metadata, _, _) in MODELS.items():
        marked(folder, family, name, marks, metadata)
    return folder


def marked(folder: Path, family: str, name: str, marks: tuple[str, ...] = (), metadata: Any = None) -> Path:
    """The family's checkpoint, with tensors of these names, and metadata."""
    tensors = load_file(folder / f"{family}.safetensors") | {mark: torch.empty(0) for mark in marks}
    save_file(tensors, folder / f"{name}.safetensors", metadata=metadata)
    return folder / f"{name}.safetensors"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    files = [
        {"name": name, "path": folder / f"{name}.safetensors", "config": folder / family, **given}
        for name, (family, _, _, given, _) in MODELS.items()
    ]
    models = [*files, {"name": "folder", "path": folder / "sdxl", **V}]
    with RunningServer(models=[{**each, "preload": False} for each in models]) as running:
        yield running


def picture(folder: Path, family: str, options: dict[str, Any]) -> np.ndarray:
    pipe = PIPELINES[family].from_pretrained(folder / family)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **options)
    arguments = {name: value for name, value in BASE.items() if name != "seed"}
    return np.asarray(pipe(**arguments, generator=[torch.Generator().manual_seed(7)]).images[0], dtype=int)


def test_pictures_equal_diffusers(server: RunningServer, folder: Path) -> None:
    right = {name: (family, options) for name, (family, _, _, _, options) in MODELS.items()}
    expected = {repr(each): picture(folder, *each) for each in (*right.values(), ("sd", {}), ("sdxl", V))}
    listed = {each.name: each for each in server.catalog.ListModels(catalog_pb.ListModelsRequest()).models}
    for name, (family, options) in {**right, "folder": ("sdxl", V)}.items():
        ours = server.generate(model=name, **BASE).pixels[0]
        assert np.abs(ours - expected[repr((family, options))]).max() <= 1, name
        others = [each for key, each in expected.items() if key != repr((family, options))]
        assert min(np.abs(ours - each).max() for each in others) > 8, "the case cannot fail"
        assert listed[name].prediction_type == options.get("prediction_type", "epsilon")


def test_the_configured_schedulers_have_it_too(server: RunningServer, folder: Path) -> None:
    """Not the model's own alone."""
    ours = server.generate(model="v_pred-ztsnr", scheduler="ddim", **BASE).pixels[0]
    pipe = PIPELINES["sdxl"].from_pretrained(folder / "sdxl")
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False, **ZERO)
    arguments = {name: value for name, value in BASE.items() if name != "seed"}
    theirs = pipe(**arguments, generator=[torch.Generator().manual_seed(7)]).images[0]
    assert np.abs(ours - np.asarray(theirs, dtype=int)).max() <= 1


WITHOUT = ["dpmpp-sde", "pndm", "heun", "kdpm2", "kdpm2-ancestral", "lms", "deis", "ipndm", "sa-solver"]


@pytest.mark.parametrize("scheduler", WITHOUT)
def test_a_scheduler_without_zero_snr_is_refused(server: RunningServer, scheduler: str) -> None:
    failed = refused(lambda: server.generate(model="v_pred-ztsnr", scheduler=scheduler, **BASE))
    assert (failed.code, failed.reason) == (StatusCode.FAILED_PRECONDITION, "UNSUPPORTED_COMBINATION")
    assert failed.violations.keys() == {"parameters.scheduler"}
    assert f"{scheduler} has no rescale_betas_zero_snr" in failed.violations["parameters.scheduler"]
    assert "ddim, ddpm, dpmpp-2m" in failed.violations["parameters.scheduler"]


REFUSED: dict[str, tuple[str, tuple[str, ...], dict[str, str], dict[str, Any], str]] = {
    "a tensor against the configuration": (
        "sdxl",
        ("v_pred",),
        {},
        {"prediction_type": "epsilon"},
        r"prediction_type: it is set to 'epsilon', but it.safetensors says 'v_prediction' \(tensor v_pred\)",
    ),
    "metadata against the configuration": (
        "sd",
        (),
        {"modelspec.prediction_type": "epsilon"},
        V,
        r"prediction_type: it is set to 'v_prediction', but .* says 'epsilon' \(modelspec.prediction_type\)",
    ),
    "zero terminal SNR": (
        "sdxl",
        ("v_pred", "ztsnr"),
        {},
        {"rescale_betas_zero_snr": False},
        r"rescale_betas_zero_snr: it is set to False, but it.safetensors says True \(tensor ztsnr\)",
    ),
    "the file against itself": (
        "sd",
        ("v_pred",),
        {"modelspec.prediction_type": "epsilon"},
        {},
        r"prediction_type: it.safetensors says .*v_pred.* and .*; set it",
    ),
    "something unknown": (
        "sd",
        (),
        {"modelspec.prediction_type": "flow"},
        {},
        "prediction_type: it.safetensors says 'flow' in modelspec.prediction_type, which is not known",
    ),
    "EDM": ("sdxl", ("edm_vpred.sigma_max",), {}, {}, r"is of the EDM formulation \(it has edm_vpred.sigma_max\)"),
    "zero SNR of epsilon": ("sdxl", ("ztsnr",), {}, {}, "rescale_betas_zero_snr: needs prediction_type 'v_prediction'"),
    "zero SNR by a scheduler without": ("sd", ("v_pred", "ztsnr"), {}, {}, "default_scheduler: pndm has no rescale_"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_contradictions_are_refused_by_key(name: str, folder: Path) -> None:
    family, marks, metadata, given, problem = REFUSED[name]
    model = {"name": "x", "path": marked(folder, family, "it", marks, metadata), "config": folder / family, **given}
    with pytest.raises(ModelError, match=problem):
        open_models(Settings(models=[model]), load_plugins())


def test_folders_of_other_formulations_are_refused(tmp_path: Path) -> None:
    folder = save_sdxl(tmp_path / "edm")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "_class_name": "EDMEulerScheduler"}))
    with pytest.raises(ModelError, match="its scheduler is EDMEulerScheduler"):
        open_models(Settings(models=[{"name": "x", "path": folder}]), load_plugins())


def test_a_default_without_the_zero_snr_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = save_sdxl(tmp_path / "zero")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **ZERO}))
    with pytest.raises(ModelError, match="default_scheduler: heun has no rescale_betas_zero_snr"):
        open_models(Settings(models=[{"name": "x", "path": folder, "default_scheduler": "heun"}]), load_plugins())
