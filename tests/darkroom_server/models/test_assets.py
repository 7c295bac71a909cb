"""An asset that cannot be compared with one model is there for the others."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from darkroom_plugins import hookimpl
from darkroom_plugins.builtin.lora import Loras
from darkroom_plugins.contract import Adapter, AssetInfo, Family
from darkroom_plugins.manager import load_plugins
from darkroom_server.config.settings import Settings
from darkroom_server.models.assets import AssetFiles
from darkroom_server.models.opening import open_models
from tests.tiny import save_sd


class Picky(Loras):
    """Compares files with one kind of models only."""

    name = "picky"

    def describe_asset(self, path: Path) -> AssetInfo:
        return AssetInfo()

    def incompatibility(self, path: Path, model: Family) -> str | None:
        if model.info.prediction_type == "epsilon":
            return None
        raise IndexError(*([f"{path} is of another kind"] if path.stem == "wordy" else []))


class PickyPlugin:
    darkroom_api_version = 1

    @hookimpl
    def darkroom_adapters(self) -> Sequence[Adapter]:
        return [Picky()]


@pytest.mark.parametrize(("name", "why"), [("wordy", "wordy.safetensors is of another kind"), ("silent", "IndexError")])
def test_a_comparison_that_fails_is_of_one_model(name: str, why: str, tmp_path: Path) -> None:
    file = tmp_path / f"{name}.safetensors"
    file.touch()
    paths = {"path": save_sd(tmp_path / "sd")}
    models = [{"name": "sd", **paths}, {"name": "v", **paths, "prediction_type": "v_prediction"}]
    settings = Settings(models=models, loras=[{"name": "it", "path": file}])
    plugins = load_plugins(blocked=["lora"], extra={"picky": PickyPlugin()})
    asset = AssetFiles(settings, plugins, open_models(settings, plugins)).entries["lora"]["it"]
    assert (asset.fits, asset.unusable) == (("sd",), "")
    assert asset.refusal("v") == f"with the model v it cannot be used: {why}"
