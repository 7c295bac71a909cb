"""A server of tiny models with ControlNets and LoRAs, and the shared one, left as it was."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.killable import Forks
from tests.support import RunningServer, settle
from tests.tiny import save_controlnet, save_kohya, save_lora, save_sd
from tests.tiny_sdxl import save_sdxl

CONTROLS, LORAS = ("edges", "depth"), ("unet-a", "unet-b", "text")
FAMILIES = ("sd", "sdxl")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models, ControlNets and LoRAs of both families."""
    folder = tmp_path_factory.mktemp("edit-parity")
    texts = {"sd": ("text_encoder",), "sdxl": ("text_encoder", "text_encoder_2")}
    for family, save in (("sd", save_sd), ("sdxl", save_sdxl)):
        save(folder / family)
        save(folder / f"{family}-9", seed=3, in_channels=9)
        for seed, name in enumerate(CONTROLS):
            save_controlnet(folder / f"{family}-{name}", folder / family, seed=20 + seed)
        save_lora(folder / f"{family}-unet-a.safetensors", folder / family, seed=30)
        save_lora(folder / f"{family}-unet-b.safetensors", folder / family, seed=31, rank=2)
        save_lora(folder / f"{family}-text.safetensors", folder / family, seed=32, networks=("unet", *texts[family]))
    save_kohya(folder / "sd-kohya.safetensors", folder / "sd-text.safetensors")
    return folder


@pytest.fixture(scope="session")
def edit_server(folder: Path) -> Iterator[RunningServer]:
    controlnets = [f"{family}-{name}" for family in FAMILIES for name in CONTROLS]
    loras = ["sd-kohya", *(f"{family}-{name}" for family in FAMILIES for name in LORAS)]
    size = {"max_edge": 2048, "max_pixels": 2048 * 2048}
    with RunningServer(
        models=[{"name": name, "path": folder / name, **size} for name in ("sd", "sd-9", "sdxl", "sdxl-9")],
        controlnets=[{"name": name, "path": folder / name} for name in controlnets],
        loras=[{"name": name, "path": folder / f"{name}.safetensors"} for name in loras],
    ) as running:
        yield running


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """What servers are forked from that are killed."""
    with Forks() as running:
        yield running


@pytest.fixture
def clean(server: RunningServer) -> Iterator[RunningServer]:
    """The shared server; after the test nothing is left, and a job still goes through."""
    yield server
    settle(server)
    assert server.generate(prompt="x", num_inference_steps=1).kinds[-1] == "completed"
