"""Score the demo model: `python -m darkroom_demo.evaluate`.

The model generates held-out scenes, and `measure` reads the pictures' contents from their pixels alone. `--originals`
scores the data set's own pictures instead (validates the measure: at least 99 %), and `--shuffled` compares each
picture with another one's prompt (near chance). Exits with 1 below the bar.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from . import MODEL_PATH
from .captions import caption
from .data import Scene, draw, scenes
from .measure import Seen, measure

BARS = {"colours": 0.95, "shapes": 0.85}
"""The least share of pictures that must be right, in a sound model."""
ORIGINALS_BAR = 0.99
BATCH = 20


@dataclass(frozen=True, slots=True)
class Check:
    """One criterion of a picture. `applies`: the scenes that it is defined for."""

    holds: Callable[[Scene, Seen], bool]
    applies: Callable[[Scene], bool] = lambda scene: True


def _background(scene: Scene, seen: Seen) -> bool:
    return seen.background == scene.background


def _objects(scene: Scene, seen: Seen) -> bool:
    """The right number of things in the right colours, in any order."""
    return sorted(thing.colour for thing in scene.things) == sorted(blob.colour for blob in seen.blobs)


def _colours(scene: Scene, seen: Seen) -> bool:
    return _background(scene, seen) and _objects(scene, seen)


def _shapes(scene: Scene, seen: Seen) -> bool:
    return sorted(thing.shape for thing in scene.things) == sorted(blob.shape for blob in seen.blobs)


def _place(scene: Scene, seen: Seen) -> bool:
    return len(seen.blobs) == 1 and seen.blobs[0].position == scene.position


def _relation(scene: Scene, seen: Seen) -> bool:
    """Each thing in its place, identified by colour."""
    ordered = seen.ordered(scene.relation)
    return [thing.colour for thing in scene.things] == [blob.colour for blob in ordered]


def _everything(scene: Scene, seen: Seen) -> bool:
    arranged = _relation if scene.relation else _place
    return _colours(scene, seen) and _shapes(scene, seen) and arranged(scene, seen)


CHECKS = {
    "background": Check(_background),
    "objects": Check(_objects),
    "colours": Check(_colours),
    "shapes": Check(_shapes),
    "position": Check(_place, lambda scene: len(scene.things) == 1),
    "relation": Check(_relation, lambda scene: len(scene.things) == 2),
    "all": Check(_everything),
}


def score(wanted: list[Scene], pictures: list[Image.Image], style: str = "") -> dict[str, tuple[int, int]]:
    """For each check: (pictures that pass, pictures that it applies to)."""
    pairs = [(scene, measure(picture, style)) for scene, picture in zip(wanted, pictures, strict=True)]
    totals = {}
    for name, check in CHECKS.items():
        results = [check.holds(scene, seen) for scene, seen in pairs if check.applies(scene)]
        totals[name] = (sum(results), len(results))
    return totals


def unseen_scenes(count: int, seed: int) -> list[Scene]:
    """Scenes that training never draws."""
    stream = scenes(seed, held_out=True)
    return [next(stream) for _ in range(count)]


def originals(wanted: list[Scene], seed: int, style: str = "") -> list[Image.Image]:
    """Ground-truth pictures of the scenes."""
    rng = random.Random(seed)
    return [draw(scene, rng, style=style) for scene in wanted]


def generate(model: Path, wanted: list[Scene], steps: int, scheduler: str, guidance: float) -> Iterator[Image.Image]:
    """Generated pictures of the scenes, picture i from seed i."""
    import torch

    pipeline = load_pipeline(model, scheduler)
    for start in range(0, len(wanted), BATCH):
        indices = range(start, min(start + BATCH, len(wanted)))
        yield from pipeline(
            [caption(wanted[index]) for index in indices],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(index) for index in indices],
        ).images


def load_pipeline(model: Path, scheduler: str) -> Any:
    """The model as a diffusers pipeline, with a scheduler by its class name."""
    import diffusers

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(model, local_files_only=True)
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def passes(totals: dict[str, tuple[int, int]], of_originals: bool) -> bool:
    """Whether every score reaches its bar."""
    bars = dict.fromkeys(CHECKS, ORIGINALS_BAR) if of_originals else BARS
    return all(totals[name][0] >= bar * totals[name][1] for name, bar in bars.items())


def report(totals: dict[str, tuple[int, int]]) -> str:
    """A table, one check per line."""
    rows = (
        f"{name:<11}{right:>5} of {count:>4}  {right / max(count, 1):>6.1%}" for name, (right, count) in totals.items()
    )
    return "\n".join(rows)


def main(
    model: Annotated[Path, typer.Option(help="Model folder.")] = MODEL_PATH,
    count: Annotated[int, typer.Option(min=2, help="Pictures.")] = 200,
    steps: Annotated[int, typer.Option(min=1, help="Inference steps a picture.")] = 25,
    scheduler: Annotated[str, typer.Option(help="Name of a diffusers scheduler class.")] = "DDIMScheduler",
    guidance: Annotated[float, typer.Option(help="Guidance scale.")] = 3.0,
    seed: Annotated[int, typer.Option(help="Of the choice of prompts.")] = 1,
    of_originals: Annotated[bool, typer.Option("--originals", help="Score the data set's own pictures.")] = False,
    shuffled: Annotated[bool, typer.Option(help="Compare with another picture's prompt.")] = False,
    save: Annotated[Path | None, typer.Option(help="Folder to keep the pictures in.")] = None,
) -> None:
    """Score the demo model on prompts that training never saw."""
    wanted = unseen_scenes(count, seed)
    made = originals(wanted, seed) if of_originals else generate(model, wanted, steps, scheduler, guidance)
    pictures = list(made)
    if save:
        _keep(pictures, wanted, save)
    if shuffled:
        wanted = wanted[1:] + wanted[:1]
    totals = score(wanted, pictures)
    print(report(totals))
    raise typer.Exit(0 if passes(totals, of_originals) else 1)


def _keep(pictures: list[Image.Image], wanted: list[Scene], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, (picture, scene) in enumerate(zip(pictures, wanted, strict=True)):
        picture.save(folder / f"{index:03} {caption(scene)}.png")


if __name__ == "__main__":
    typer.run(main)
