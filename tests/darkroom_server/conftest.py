"""A server of tiny models with ControlNets and LoRAs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import RunningServer
from tests.tiny import save_controlnet, save_kohya, save_lora, save_sd

CONTROLS, LORAS = ("edges", "depth"), ("unet-a", "unet-b", "text", "kohya")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models, ControlNets and LoRAs of both families."""
    folder = tmp_path_factory.mktemp("edit-parity")
    save_sd(folder / "sd")
    save_sd(folder / "sd-9", seed=3, in_channels=9)
    for seed, name in enumerate(CONTROLS):
        save_controlnet(folder / f"sd-{name}", folder / "sd", seed=20 + seed)
    save_lora(folder / "sd-unet-a.safetensors", folder / "sd", seed=30)
    save_lora(folder / "sd-unet-b.safetensors", folder / "sd", seed=31, rank=2)
    save_lora(folder / "sd-text.safetensors", folder / "sd", seed=32, networks=("unet", "text_encoder"))
    save_kohya(folder / "sd-kohya.safetensors", folder / "sd-text.safetensors")
    return folder


@pytest.fixture(scope="session")
def edit_server(folder: Path) -> Iterator[RunningServer]:
    with RunningServer(
        models=[{"name": name, "path": folder / name} for name in ("sd", "sd-9")],
        controlnets=[{"name": f"sd-{name}", "path": folder / f"sd-{name}"} for name in CONTROLS],
        loras=[{"name": f"sd-{name}", "path": folder / f"sd-{name}.safetensors"} for name in LORAS],
    ) as running:
        yield running
