"""Train the demo model's adapters: `python -m darkroom_demo.train_adapters --out FOLDER`.

Four stages, each with its checkpoint, then an export, all on a finished, frozen model (`--model`):

- controlnet: a ControlNet that follows Canny edges;
- encoder: a copy of the VAE's encoder, fine-tuned through the frozen decoder for latents of styled pictures, which the
  VAE has never seen. Used only to train the next two;
- outline, stripes: the style LoRAs.

A ControlNet's training may go on with another model than it began with; a LoRA's checkpoint contains its model.
"""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import StableDiffusionPipeline

from . import CONTROLNET_PATH, LORA_PATHS, MODEL_PATH
from .data import Scene
from .networks import Network
from .styles import STYLES
from .train_controlnet import EdgePool, new_controlnet, train_controlnet
from .train_lora import StylePool, add_lora, load_lora, save_lora, set_weights
from .train_unet import train_unet
from .train_vae import freeze_decoder, train_vae
from .training import Clock, Trainer, resumed

CONTROLNET_RATE, ENCODER_RATE, LORA_RATE = 1e-3, 5e-4, 1e-3
"""Peak learning rates."""


class Stage(StrEnum):
    CONTROLNET = "controlnet"
    ENCODER = "encoder"
    OUTLINE = "outline"
    STRIPES = "stripes"
    EXPORT = "export"
    ALL = "all"


SHARES = {Stage.CONTROLNET: 0.5, Stage.ENCODER: 0.1, Stage.OUTLINE: 0.2, Stage.STRIPES: 0.2}
"""How `all` divides its minutes."""


class AdapterTraining:
    """A training run: base model, checkpoint folder and sizes."""

    def __init__(
        self,
        folder: Path,
        model: Path,
        device: str,
        batch: int,
        pool: int,
        seed: int,
        max_steps: int,
        start: Path | None = None,
    ):
        """`start`: a folder of earlier adapters, whose LoRAs new ones go on from."""
        folder.mkdir(parents=True, exist_ok=True)
        self.start = start
        self.folder, self.model, self.device = folder, model, torch.device(device)
        self.batch, self.pool, self.seed, self.max_steps = batch, pool, seed, max_steps
        torch.set_flush_denormal(True)

    def train(self, stage: Stage, minutes: float) -> None:
        stages: dict[Stage, Callable[[float], None]] = {
            Stage.CONTROLNET: self.controlnet,
            Stage.ENCODER: self.encoder,
            Stage.OUTLINE: lambda minutes: self.lora("outline", minutes),
            Stage.STRIPES: lambda minutes: self.lora("stripes", minutes),
        }
        stages[stage](minutes)

    def controlnet(self, minutes: float) -> None:
        base = self.base_model()
        trainer = self.controlnet_trainer(base, minutes)
        pool = EdgePool(base.vae, base.vae.config.sample_size, self.seed + trainer.step, self.pool)
        train_controlnet(trainer, base, pool, self.batch, self.max_steps)

    def encoder(self, minutes: float) -> None:
        trainer = self._encoder(minutes)
        vae: Network = trainer.networks["vae"]
        train_vae(trainer, vae.config.sample_size, self.seed, max(1, self.batch // 2), self.max_steps, tuple(STYLES))

    def lora(self, style: str, minutes: float) -> None:
        trainer, base = self.lora_trainer(style, minutes)
        vae: Network = self._encoder().average["vae"]
        pool = StylePool(vae, vae.config.sample_size, self.seed + trainer.step, self.pool, style)

        def weigh(scenes: list[Scene]) -> None:
            set_weights(trainer.networks, [scene.strength for scene in scenes])

        train_unet(trainer, pool, base.tokenizer, self.batch, self.max_steps, weigh)

    def export(self, out: Path) -> None:
        """Write the averaged weights of the newest checkpoints in half precision."""
        controlnet: Network = self.controlnet_trainer(self.base_model()).average["controlnet"]
        folder = out / CONTROLNET_PATH.name
        controlnet.half().save_pretrained(folder, safe_serialization=True)
        for weights in folder.glob("*.safetensors"):
            weights.chmod(0o644)
        for style, file in LORA_PATHS.items():
            save_lora(style, self.lora_trainer(style)[0], out / file.name)

    def base_model(self) -> Network:
        """The finished model, frozen."""
        pipeline = StableDiffusionPipeline.from_pretrained(self.model, local_files_only=True).to(self.device)
        for network in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            network.requires_grad_(False)
        return pipeline

    def controlnet_trainer(self, base: Network, minutes: float = 1) -> Trainer:
        return self._trainer("controlnet", minutes, CONTROLNET_RATE, controlnet=new_controlnet(base.unet))

    def _encoder(self, minutes: float = 1) -> Trainer:
        vae = self.base_model().vae.requires_grad_(True)
        freeze_decoder(vae)
        return self._trainer("encoder", minutes, ENCODER_RATE, vae=vae)

    def lora_trainer(self, style: str, minutes: float = 1) -> tuple[Trainer, Network]:
        base = self.base_model()
        add_lora(style, base.unet, base.text_encoder)
        if self.start:
            load_lora(self.start / LORA_PATHS[style].name, base.unet, base.text_encoder)
        return self._trainer(style, minutes, LORA_RATE, unet=base.unet, text_encoder=base.text_encoder), base

    def _trainer(self, name: str, minutes: float, peak: float, **networks: Network) -> Trainer:
        path = self.folder / f"{name}.pt"
        return resumed(Trainer(networks, Clock(minutes), path, self.device, peak), self.seed)


def main(
    out: Annotated[Path, typer.Option(help="Folder for the finished adapters.")],
    model: Annotated[Path, typer.Option(help="Folder of the finished model.")] = MODEL_PATH,
    stages: Annotated[Stage, typer.Option(help="Which part of the training to do.")] = Stage.ALL,
    minutes: Annotated[float, typer.Option(help="Time for it, in all.")] = 100.0,
    start: Annotated[Path | None, typer.Option(help="Folder of earlier adapters: LoRAs go on from them.")] = None,
    checkpoints: Annotated[Path | None, typer.Option(help="Folder for checkpoints.  [default: OUT-training]")] = None,
    device: str = "cpu",
    threads: Annotated[int, typer.Option(help="Threads on a CPU.")] = 1,
    batch: Annotated[int, typer.Option(help="Pictures a step; the encoder takes half.")] = 32,
    pool: Annotated[int, typer.Option(help="Encoded pictures kept at hand.")] = 4096,
    max_steps: Annotated[int, typer.Option(help="Stop a stage after so many steps, even with time left.")] = 1_000_000,
    seed: int = 0,
) -> None:
    """Train the demo model's adapters, resuming from checkpoints if there are any."""
    torch.set_num_threads(threads)
    folder = checkpoints or out.with_name(out.name + "-training")
    training = AdapterTraining(folder, model, device, batch, pool, seed, max_steps, start)
    for stage, share in (SHARES if stages is Stage.ALL else {stages: 1.0}).items():
        if stage is not Stage.EXPORT:
            training.train(stage, minutes * share)
    if stages in (Stage.EXPORT, Stage.ALL):
        training.export(out)
        print(f"wrote {out}")


if __name__ == "__main__":
    typer.run(main)
