"""`darkroom check` finds by configurations and headers, in a second, what a server finds that opens its models,
and shows what it would serve."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from inspect import signature
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from darkroom_client.cli._app import app
from darkroom_plugins.manager import load_plugins
from darkroom_server.config.settings import Settings
from darkroom_server.models.assets import AssetFiles
from darkroom_server.models.model import ModelError
from darkroom_server.models.opening import open_models
from tests.checkpoints import COMMIT, ldm_vae, save_checkpoint, save_to_cache
from tests.tiny import save_controlnet, save_kohya, save_lora, save_safety_checker, save_sd, save_tiny_vae
from tests.tiny_sdxl import save_sdxl

LIBRARIES = {"torch", "diffusers", "transformers", "accelerate", "peft", "scipy"}
PROGRAM = f"""
import sys
from darkroom_client.cli import main
try:
    main()
finally:
    print("imported:", *sorted({LIBRARIES} & sys.modules.keys()), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each family and kind of source, and an asset of each kind."""
    folder = tmp_path_factory.mktemp("check")
    sd, sdxl = save_safety_checker(save_sd(folder / "sd")), save_sdxl(folder / "sdxl")
    save_checkpoint(folder / "sd.safetensors", sd)
    save_checkpoint(folder / "sd2.safetensors", sd, open_clip=True)
    save_checkpoint(folder / "sdxl.safetensors", sdxl)
    save_file({name: each.contiguous() for name, each in ldm_vae(sd / "vae").items()}, folder / "vae.safetensors")
    save_to_cache(folder / "cache", sd, "tiny/sd")
    save_tiny_vae(folder / "tiny-vae")
    save_controlnet(folder / "net", sd, 1)
    save_lora(folder / "lora.safetensors", sd, 2, ("unet", "text_encoder"))
    save_kohya(folder / "kohya.safetensors", folder / "lora.safetensors")
    save_file({"emb_params": torch.zeros(2, 32)}, folder / "word.safetensors")
    return folder


MODELS = """
[[models]]
name = "folder"
path = "sd"
safety = "flag"
tiny_vae = "tiny-vae"
[[models]]
name = "xl"
path = "sdxl"
dtype = "float16"
offload = "none"
[[models]]
name = "file"
path = "sd.safetensors"
config = "sd"
vae = "vae.safetensors"
prediction_type = "v_prediction"
[[models]]
name = "file2"
path = "sd2.safetensors"
config = "sd"
[[models]]
name = "file-xl"
path = "sdxl.safetensors"
config = "sdxl"
[[models]]
name = "hub"
path = "hub:tiny/sd@{commit}"
[[controlnets]]
name = "net"
path = "net"
preprocessor = "canny"
[[loras]]
name = "lora"
path = "lora.safetensors"
[[loras]]
name = "kohya"
path = "kohya.safetensors"
[[embeddings]]
name = "word"
path = "word.safetensors"
"""


def test_imports_no_library_that_takes_seconds(folder: Path) -> None:
    (folder / "darkroom.toml").write_text(MODELS.format(commit=COMMIT))
    environment = {**os.environ, "HF_HUB_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", PROGRAM, "check"]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "imported:\n")
    rows = [tuple(cell.strip() for cell in line.split("│")[1:-1]) for line in result.stdout.splitlines()]
    found = {row[0]: row[1:] for row in rows if len(row) == 9}
    assert found["folder (default)"][1:4] == ("sd", "float32", "cpu")
    assert found["folder (default)"][6:] == ("flag", "epsilon")
    assert found["xl"][1:4] == ("sdxl", "float16", "cpu")
    assert found["file"][7] == "v_prediction"
    assert found.keys() >= {"file2", "file-xl", "hub"}
    fits = {row[1]: row[3] for row in rows if len(row) == 5}
    of_sd = "file, file2, folder, hub"
    assert fits == {"net": of_sd, "lora": of_sd, "kohya": of_sd, "word": of_sd}


def sizes(settings: Settings, by_headers: bool) -> dict[str, tuple[Any, ...]]:
    models = open_models(settings, load_plugins(), by_headers)
    return {
        name: (model.info, model.family.weight_bytes, model.device_bytes, model.default_scheduler, model.preview_modes)
        for name, model in models.items()
    }


def test_says_what_a_server_says(folder: Path) -> None:
    models = [
        {"name": "sd", "path": folder / "sd", "safety": "flag", "tiny_vae": folder / "tiny-vae"},
        {"name": "xl", "path": folder / "sdxl", "dtype": "float16"},
        {"name": "smaller", "path": folder / "sd", "layerwise_casting": "float8_e5m2"},
    ]
    settings = Settings(models=models, device="cpu")
    assert sizes(settings, by_headers=True) == sizes(settings, by_headers=False)


def test_what_is_said_of_schedulers_is_what_their_classes_have() -> None:
    entries = load_plugins().schedulers.values()
    assert {each.name: each.takes_zero_snr for each in entries} == {
        each.name: "rescale_betas_zero_snr" in signature(each.scheduler.__init__).parameters for each in entries
    }
    assert {each.class_name for each in entries} == {each.scheduler.__name__ for each in entries}


def without(file: str, name: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        weights = load_file(model / file)
        del weights[name]
        save_file(weights, model / file)

    return change


def also(file: str, name: str, *shape: int) -> Callable[[Path], None]:
    return lambda model: save_file({**load_file(model / file), name: torch.zeros(shape)}, model / file)


def options(file: str, **changes: Any) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        config = json.loads((model / file).read_text())
        (model / file).write_text(json.dumps({**config, **changes}))

    return change


def text(file: str, content: str) -> Callable[[Path], None]:
    return lambda model: (model / file).write_text(content) and None


def gone(*files: str) -> Callable[[Path], None]:
    return lambda model: [(model / file).unlink() for file in files] and None


UNET, VAE = (f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae"))
FAULTS: dict[str, tuple[Callable[[Path], None], dict[str, Any], str]] = {
    "lacks a weight": (without(UNET, "conv_in.bias"), {}, "unet: .* UNet2DConditionModel: no conv_in.bias"),
    "has one more": (also(UNET, "more.weight", 1), {}, "unet: .*: a more.weight"),
    "other shape": (also(VAE, "quant_conv.bias", 3), {}, r"vae: .* quant_conv.bias of \(3,\) and not \(8,\)"),
    "other configuration": (options("unet/config.json", block_out_channels=[16, 64]), {}, "unet: .* not those of its"),
    "other text encoder": (options("text_encoder/config.json", vocab_size=99), {}, "text_encoder: .*token_embedding"),
    "impossible configuration": (options("unet/config.json", norm_num_groups=5), {}, "does not load: .*divisible"),
    "unknown class": (options("model_index.json", vae=["diffusers", "AutoencoderDC"]), {}, "one family should know"),
    "unknown library": (options("model_index.json", unet=["evil", "UNet2DConditionModel"]), {}, "its unet is of evil"),
    "no configuration": (gone("vae/config.json"), {}, "does not load: .*vae/config.json"),
    "no JSON": (text("unet/config.json", "{"), {}, "does not load: Expecting"),
    "no index": (gone("model_index.json"), {}, "has no readable model_index.json"),
    "no weights": (gone(UNET), {}, "unet has no weights as safetensors"),
    "no variant": (lambda model: None, {"variant": "bf16"}, "no variant 'bf16' but the plain weights"),
    "torn weights": (text(UNET, "torn"), {}, "is not a whole safetensors file"),
    "no tokenizer": (gone("tokenizer/tokenizer.json"), {}, "tokenizer: no tokenizer can be read"),
    "torn tokenizer": (text("tokenizer/tokenizer.json", "{}"), {}, "tokenizer: no tokenizer can be read"),
    "other formulation": (
        options("scheduler/scheduler_config.json", _class_name="EDMEulerScheduler"),
        {},
        "its scheduler is EDMEulerScheduler",
    ),
    "unknown class of schedulers": (
        lambda model: (
            options("model_index.json", scheduler=["diffusers", "Best"])(model)
            or options("scheduler/scheduler_config.json", _class_name="Best")(model)
        ),
        {},
        "its scheduler is a Best, which diffusers does not have",
    ),
    "unknown library of schedulers": (
        options("model_index.json", scheduler=["evil", "PNDMScheduler"]),
        {},
        "its scheduler is of evil",
    ),
    "no scheduler": (gone("scheduler/scheduler_config.json"), {}, "does not load: .*scheduler_config.json"),
    "unknown scheduler": (lambda model: None, {"default_scheduler": "best"}, "default_scheduler: there is no"),
    "scheduler without zero SNR": (
        lambda model: None,
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "default_scheduler": "heun"},
        "default_scheduler: heun has no rescale_betas_zero_snr",
    ),
    "no safety checker": (
        options("model_index.json", safety_checker=[None, None]),
        {"safety": "block"},
        "safety: the model has no safety checker",
    ),
    "no image processor": (
        gone("feature_extractor/preprocessor_config.json"),
        {"safety": "block"},
        "safety: .*preprocessor_config.json",
    ),
    "no tiny VAE": (lambda model: None, {"default_preview_mode": "tiny-vae"}, "default_preview_mode: 'tiny-vae' needs"),
    "no memory of its own": (lambda model: None, {"offload": "model"}, "offload: cpu has no memory of its own"),
    "no such attention": (lambda model: None, {"attention_backend": "best"}, "attention_backend: must be one of"),
    "no such device": (lambda model: None, {"device": "cuda:99"}, "there is no device 'cuda:99'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_finds_what_a_server_finds(fault: str, folder: Path, tmp_path: Path) -> None:
    change, given, problem = FAULTS[fault]
    model = Path(shutil.copytree(folder / "sd", tmp_path / "model"))
    change(model)
    settings = Settings(models=[{"name": "it", "path": model, "device": "cpu", **given}])
    with pytest.raises(ModelError, match=problem) as of_check:
        open_models(settings, load_plugins(), by_headers=True)
    with pytest.raises(ModelError) as of_server:
        open_models(settings, load_plugins())
    assert str(of_check.value) == str(of_server.value)


@pytest.mark.parametrize(
    ("file", "config", "problem"),
    [
        ("sd.safetensors", "sdxl", "sd.safetensors is Stable Diffusion 1.x"),
        ("sdxl.safetensors", "sd", "sdxl.safetensors is Stable Diffusion XL"),
        ("vae.safetensors", "sd", "has no weights of the unet"),
    ],
)
def test_finds_checkpoints_of_another_architecture(file: str, config: str, problem: str, folder: Path) -> None:
    settings = Settings(models=[{"name": "it", "path": folder / file, "config": folder / config, "device": "cpu"}])
    with pytest.raises(ModelError, match=problem):
        open_models(settings, load_plugins(), by_headers=True)


def test_finds_assets_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    net = Path(shutil.copytree(folder / "net", tmp_path / "net"))
    without("diffusion_pytorch_model.safetensors", "controlnet_mid_block.bias")(net)
    lora = load_file(folder / "kohya.safetensors")
    name = next(name for name in lora if name.endswith("to_k.lora_down.weight"))
    save_file({**lora, name: torch.zeros(4, 7)}, tmp_path / "wide.safetensors")
    save_file({"x.lora_mid": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    save_file({"emb_params": torch.zeros(1, 2, 32)}, tmp_path / "word.safetensors")
    kinds = {"controlnets": ["net"], "loras": ["wide", "foreign"], "embeddings": ["word"]}
    listed = {
        kind: [{"name": n, "path": net if n == "net" else tmp_path / f"{n}.safetensors"} for n in names]
        for kind, names in kinds.items()
    }
    settings, plugins = Settings(models=[{"name": "it", "path": folder / "sd"}], **listed), load_plugins()
    entries = AssetFiles(settings, plugins, open_models(settings, plugins, by_headers=True)).entries
    assets = {name: asset for each in entries.values() for name, asset in each.items()}
    assert "ControlNetModel: no controlnet_mid_block.bias" in assets["net"].unusable
    assert "which is no LoRA's matrix" in assets["foreign"].unusable
    assert "not vectors" in assets["word"].unusable
    assert "4 x 7 (down)" in assets["wide"].incompatibilities["it"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_says_what_would_be_served(here: Path, tiny_model: Path) -> None:
    save_lora(here / "ink.safetensors", tiny_model, 2)
    secret = sha256(b"t0ken").hexdigest()
    text = (
        f"memory_budget = '20 GiB'\n[[tokens]]\nname = 'me'\nrole = 'operator'\nsha256 = '{secret}'\n"
        "[[loras]]\nname = 'ink'\npath = 'ink.safetensors'\n"
        f"[[models]]\nname = 'little'\npath = '{tiny_model}'\ndevice = 'cpu'\n"
        "attention_slicing = 'max'\nvae_tiling = true\n"
    )
    Path("darkroom.toml").write_text(text)
    command = [str(Path(sys.executable).with_name("darkroom")), "check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    rows = [tuple(cell.strip() for cell in line.split("│")[1:-1]) for line in result.stdout.splitlines()]
    (model,) = (row for row in rows if row and row[0] == "little (default)")
    assert model[1:5] == (str(tiny_model), "sd", "float32", "cpu")
    assert re.fullmatch(r"[\d.]+ (KiB|MiB)", model[5])
    assert model[6:] == ("attention_slicing=max, vae_tiling", "off", "epsilon")
    assert ("me", "operator") in rows
    assert ("memory_budget", "20.0 GiB") in rows
    assert ("lora", "ink", "ink.safetensors", "little") in [row[:4] for row in rows]
    assert secret not in result.stdout


def test_tells_what_cannot_be_used(here: Path, tiny_model: Path) -> None:
    (here / "torn.safetensors").write_text("hello")
    lora = "[[loras]]\nname = 'torn'\npath = 'torn.safetensors'\n"
    Path("darkroom.toml").write_text(f"{lora}[[models]]\nname = 'little'\npath = '{tiny_model}'\ndevice = 'cpu'\n")
    result = CliRunner().invoke(app, ["check"])
    assert result.exit_code == 1
    assert "none: torn.safetensors is not a whole safetensors file" in result.stdout
    assert "little (default)" in result.stdout


def test_can_be_read_at_80_columns(here: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = StringIO()
    monkeypatch.setattr("rich.console.Console", lambda: Console(file=output, force_terminal=True, width=80))
    Path("darkroom.toml").write_text(f"[[models]]\nname = 'little'\npath = '{tiny_model}'\ndevice = 'cpu'\n")
    CliRunner().invoke(app, ["check"])
    shown = re.sub(r"\x1b\[[0-9;]*m", "", output.getvalue())
    assert max(map(len, shown.splitlines())) <= 80
    assert "model little (default)" in shown.splitlines()
    assert "family sd; dtype float32; device cpu;" in " ".join(shown.split())
    assert "│ listen        │" in shown
