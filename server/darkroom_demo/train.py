"""Train the demo model: `python -m darkroom_demo.train --out FOLDER`.

Three stages, each with its checkpoint, then an export, which can be repeated at any time:

- vae: the autoencoder between pictures and latents;
- unet: the UNet and the text encoder, on the latents of that encoder;
- decoder: the autoencoder's decoder alone, for sharper edges; it may run in parallel to `unet`, in its own process.

The learning rate follows wall-clock time, so every stage converges within its budget of minutes. On a CPU one thread is
as fast as two, for networks this small; on a GPU (`--device cuda`) raise `--batch` and `--image-size`.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn
from transformers import CLIPTokenizer

from .export import export, pipeline_of
from .networks import Network, new_text_encoder, new_unet, new_vae
from .tokenizer import new_tokenizer, save_tokenizer
from .train_unet import LatentPool, train_unet
from .train_vae import freeze_encoder, set_scaling, train_vae
from .training import Clock, Trainer, resumed

VAE_RATE, UNET_RATE, DECODER_RATE = 1e-3, 1e-3, 5e-4
"""Peak learning rates."""
SCALING_SEED = 0
"""Fixed, so that every stage and the export scale latents alike."""


class Stage(StrEnum):
    VAE = "vae"
    UNET = "unet"
    DECODER = "decoder"
    EXPORT = "export"
    ALL = "all"


SHARES = {Stage.VAE: 0.25, Stage.UNET: 0.55, Stage.DECODER: 0.2}
"""How `all` divides its minutes."""


class Training:
    """A training run: checkpoint folder and sizes."""

    def __init__(self, folder: Path, device: str, image_size: int, batch: int, seed: int, max_steps: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.device = folder, torch.device(device)
        self.image_size, self.batch, self.seed, self.max_steps = image_size, batch, seed, max_steps
        torch.manual_seed(seed)
        torch.set_flush_denormal(True)

    def train(self, stage: Stage, minutes: float) -> None:
        {Stage.VAE: self.vae, Stage.UNET: self.unet, Stage.DECODER: self.decoder}[stage](minutes)

    def vae(self, minutes: float) -> None:
        trainer = self._trainer("vae", minutes, VAE_RATE, vae=new_vae(self.image_size))
        train_vae(trainer, self.image_size, self.seed, max(1, self.batch // 4), self.max_steps)

    def decoder(self, minutes: float) -> None:
        vae = self._trained_vae("vae")
        freeze_encoder(vae)
        trainer = self._trainer("decoder", minutes, DECODER_RATE, vae=vae)
        train_vae(trainer, self.image_size, self.seed + 1, max(1, self.batch // 4), self.max_steps)

    def unet(self, minutes: float) -> None:
        tokenizer = self._tokenizer()
        trainer = self._trainer("unet", minutes, UNET_RATE, **self._denoiser(len(tokenizer)))
        pool = LatentPool(self._trained_vae("vae"), self.image_size, self.seed + trainer.step)
        train_unet(trainer, pool, tokenizer, self.batch, self.max_steps)

    def export(self, out: Path) -> None:
        """Write the averaged weights of the newest checkpoints as a model folder."""
        tokenizer = self._tokenizer()
        vae = self._trained_vae("decoder" if self._path("decoder").exists() else "vae")
        networks = self._averaged("unet", self._denoiser(len(tokenizer)))
        export(pipeline_of(vae, networks["unet"], networks["text_encoder"], tokenizer), out)

    def _tokenizer(self) -> Network:
        # Kept beside the checkpoints: other captions make another vocabulary, which trained weights cannot read.
        folder = self.folder / "tokenizer"
        if not folder.exists():
            save_tokenizer(new_tokenizer(self.seed), folder)
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)

    def _denoiser(self, vocab_size: int) -> dict[str, Network]:
        # The end token is the vocabulary's last.
        return {"unet": new_unet(self.image_size), "text_encoder": new_text_encoder(vocab_size, vocab_size - 1)}

    def _trainer(self, name: str, minutes: float, peak: float, **networks: Network) -> Trainer:
        return resumed(Trainer(networks, Clock(minutes), self._path(name), self.device, peak), self.seed)

    def _trained_vae(self, name: str) -> Network:
        vae: Network = self._averaged(name, {"vae": new_vae(self.image_size)})["vae"]
        # The encoder is the same in "vae" and "decoder", and so is this factor.
        set_scaling(vae, self.image_size, SCALING_SEED, self.device)
        return vae

    def _averaged(self, name: str, networks: dict[str, Network]) -> dict[str, Network]:
        state = torch.load(self._path(name), map_location=self.device, weights_only=True)
        modules = nn.ModuleDict(networks).to(self.device).eval()
        modules.load_state_dict(state["average"])
        return dict(modules.items())

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.pt"


def main(
    out: Annotated[Path, typer.Option(help="Folder for the finished model.")],
    stages: Annotated[Stage, typer.Option(help="Which part of the training to do.")] = Stage.ALL,
    minutes: Annotated[float, typer.Option(help="Time for it, in all.")] = 150.0,
    checkpoints: Annotated[Path | None, typer.Option(help="Folder for checkpoints.  [default: OUT-training]")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from checkpoints, if there are any.")] = True,
    device: str = "cpu",
    threads: Annotated[int, typer.Option(help="Threads on a CPU.")] = 1,
    image_size: Annotated[int, typer.Option(help="Edge of the pictures in pixels, a multiple of 16.")] = 64,
    batch: Annotated[int, typer.Option(help="Pictures a step; the autoencoder takes a quarter.")] = 32,
    max_steps: Annotated[int, typer.Option(help="Stop a stage after so many steps, even with time left.")] = 1_000_000,
    seed: int = 0,
) -> None:
    """Train the demo model and write it as a diffusers folder."""
    torch.set_num_threads(threads)
    training = Training(
        checkpoints or out.with_name(out.name + "-training"), device, image_size, batch, seed, max_steps
    )
    shares = SHARES if stages is Stage.ALL else {stages: 1.0}
    for stage, share in shares.items():
        if stage is Stage.EXPORT:
            continue
        if not resume:
            (training.folder / f"{stage}.pt").unlink(missing_ok=True)
        training.train(stage, minutes * share)
    if stages in (Stage.EXPORT, Stage.ALL):
        training.export(out)
        print(f"wrote {out}")


if __name__ == "__main__":
    typer.run(main)
