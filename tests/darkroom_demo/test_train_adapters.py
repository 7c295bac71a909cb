from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from darkroom_demo import ADAPTERS_PATH, CONTROLNET_PATH, LORA_PATHS, MODEL_PATH

pytest.importorskip("diffusers")

from diffusers import ControlNetModel, StableDiffusionPipeline

from darkroom_demo.networks import training_noise
from darkroom_demo.tokenizer import token_ids
from darkroom_demo.train_adapters import AdapterTraining, Stage
from darkroom_demo.train_controlnet import EdgePool, controlnet_loss
from darkroom_demo.train_lora import WITH_TEXT, StylePool, save_lora, set_weights
from darkroom_demo.train_unet import unet_loss
from darkroom_demo.training import WARMUP_STEPS, Trainer


@pytest.fixture
def training(tmp_path: Path) -> AdapterTraining:
    return AdapterTraining(tmp_path, MODEL_PATH, "cpu", batch=4, pool=16, seed=0, max_steps=2)


def losses(trainer: Trainer, loss_of: Callable[[], torch.Tensor], steps: int = 6) -> tuple[float, float]:
    """Before and after some steps on one batch with one noise."""
    trainer.step = WARMUP_STEPS
    seen = []
    for _ in range(steps):
        torch.manual_seed(0)
        loss = loss_of()
        trainer.apply(loss)
        seen.append(loss.item())
    return seen[0], seen[-1]


def test_a_controlnet_learns_and_its_model_stays(training: AdapterTraining) -> None:
    base = training.base_model()
    before = {name: tensor.clone() for name, tensor in base.unet.state_dict().items()}
    trainer = training.controlnet_trainer(base, minutes=10)
    latents, maps, scenes = EdgePool(base.vae, 64, seed=0, size=16).batch_with_maps(8)
    assert maps.shape == (8, 3, 64, 64)
    assert set(maps.unique().tolist()) == {0.0, 1.0}
    ids = torch.tensor(token_ids(base.tokenizer, [scene.key() for scene in scenes]))
    noise = training_noise()
    first, last = losses(trainer, lambda: controlnet_loss(trainer, base, latents, maps, ids, noise))
    assert last < first
    assert all(torch.equal(before[name], tensor) for name, tensor in base.unet.state_dict().items())


@pytest.mark.parametrize("style", LORA_PATHS)
def test_a_lora_learns_and_its_model_stays(training: AdapterTraining, style: str) -> None:
    trainer, base = training.lora_trainer(style, minutes=10)
    before = {name: tensor.clone() for name, tensor in trainer.networks.state_dict().items()}
    latents, scenes = StylePool(base.vae, 64, seed=0, size=16, style=style).batch(8)
    assert len({scene.strength for scene in scenes}) > 2
    set_weights(trainer.networks, [scene.strength for scene in scenes])
    ids = torch.tensor(token_ids(base.tokenizer, [scene.key() for scene in scenes]))
    noise = training_noise()
    first, last = losses(trainer, lambda: unet_loss(trainer, latents, ids, noise))
    assert last < first
    changed = {name for name, tensor in trainer.networks.state_dict().items() if not torch.equal(before[name], tensor)}
    assert changed
    assert all("lora_" in name for name in changed)
    assert any(name.startswith("text_encoder") for name in changed) == (style in WITH_TEXT)


@pytest.mark.parametrize("style", LORA_PATHS)
def test_a_lora_goes_on_from_an_earlier_one(training: AdapterTraining, tmp_path: Path, style: str) -> None:
    training.start = ADAPTERS_PATH
    trainer, _ = training.lora_trainer(style)
    save_lora(style, trainer, tmp_path / "same.safetensors")
    same, shipped = load_file(tmp_path / "same.safetensors"), load_file(LORA_PATHS[style])
    assert same.keys() == shipped.keys()
    assert all(torch.equal(same[name], shipped[name]) for name in same)


@torch.no_grad()
def test_each_row_has_its_own_weight(training: AdapterTraining) -> None:
    training.start = ADAPTERS_PATH
    trainer, base = training.lora_trainer("stripes")
    ids = torch.tensor(token_ids(base.tokenizer, ["a red circle on a blue background"]))
    noisy = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))

    def predicted(*weights: float) -> torch.Tensor:
        set_weights(trainer.networks, list(weights))
        text = base.text_encoder(ids.expand(len(weights), -1)).last_hidden_state
        result: torch.Tensor = base.unet(noisy.expand(len(weights), -1, -1, -1), 500, text).sample
        return result

    alone = torch.cat([predicted(weight) for weight in (0.0, 0.5, 1.0)])
    assert torch.allclose(predicted(0.0, 0.5, 1.0), alone, atol=1e-5)
    assert all((alone[i] - alone[i + 1]).abs().max() > 0.01 for i in (0, 1)), "the case cannot fail"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_all_stages_make_what_diffusers_loads(training: AdapterTraining, tmp_path: Path) -> None:
    for stage in (Stage.CONTROLNET, Stage.ENCODER, Stage.OUTLINE, Stage.STRIPES):
        training.train(stage, minutes=10)
    training.export(tmp_path / "out")
    controlnet = ControlNetModel.from_pretrained(tmp_path / "out" / CONTROLNET_PATH.name, local_files_only=True)
    assert any(parameter.abs().max() > 0 for parameter in controlnet.controlnet_mid_block.parameters())
    pipeline: Any = StableDiffusionPipeline.from_pretrained(MODEL_PATH, local_files_only=True)
    for style, file in LORA_PATHS.items():
        pipeline.load_lora_weights(tmp_path / "out", weight_name=file.name, adapter_name=style)
    assert pipeline.get_list_adapters() == {"unet": list(LORA_PATHS), "text_encoder": list(WITH_TEXT)}


def test_training_goes_on_where_it_stopped(training: AdapterTraining) -> None:
    training.controlnet(minutes=10)
    training.max_steps = 3
    training.controlnet(minutes=10)
    assert torch.load(training.folder / "controlnet.pt", weights_only=True)["step"] == 3


@pytest.mark.parametrize("style", LORA_PATHS)
def test_shipped_loras_are_named_as_diffusers_names_them(style: str) -> None:
    weights = load_file(LORA_PATHS[style])
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert {name.split(".")[0] for name in weights} == {"unet", *(["text_encoder"] if style in WITH_TEXT else [])}
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in weights)
    assert all("text_model." in name for name in weights if name.startswith("text_encoder."))
