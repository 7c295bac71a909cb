"""Score the demo model's adapters with diffusers' own pipelines: `python -m darkroom_demo.evaluate_adapters`.

- ControlNet: maps are edges of scenes with random layout and colours; the prompt has other colours, no sizes and no
  positions. Score: edge F1 between map and picture, with and without the ControlNet.
- LoRAs: the same prompts and seeds at the weights WEIGHTS. Scores: style strength, and prompt accuracy at full
  weight.

Scenes are held out from training. Exits with 1 below the bars; `--save` keeps a sheet of pictures for each.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from . import ADAPTERS_PATH, CONTROLNET_PATH, LORA_PATHS, MODEL_PATH
from .captions import caption
from .data import Scene, anywhere, draw, told
from .edges import canny, edge_f1, edge_picture
from .evaluate import load_pipeline, report, score, unseen_scenes
from .measure import style_strength
from .shapes import COLOURS

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
FOLLOWS, BY_CHANCE = 0.7, 0.4
"""Bars for the mean edge F1: at least, with the ControlNet; at most, without."""
KEPT = 0.8
"""Bar for the share of pictures, with the ControlNet or a LoRA at full weight, whose colours are the prompt's."""
STYLED = 0.6
"""Bar for the mean strength of a style at full weight."""
SEEN = {"outline": 0.1, "stripes": 0.25}
"""The same at half weight. The shipped outline was trained at full weight alone."""
BATCH = 20
SHEET = 10
"""Pictures in a row of a sheet."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling settings: picture i from seed i."""

    steps: int = 25
    scheduler: str = "DDIMScheduler"
    guidance: float = 3.0

    def pictures(self, pipeline: Any, prompts: list[str], maps: list[Image.Image] | None = None) -> list[Image.Image]:
        import torch

        made: list[Image.Image] = []
        for start in range(0, len(prompts), BATCH):
            part = slice(start, start + BATCH)
            made += pipeline(
                prompts[part],
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                generator=[torch.Generator().manual_seed(start + i) for i in range(len(prompts[part]))],
                **({"image": maps[part]} if maps else {}),
            ).images
        return made


def controlled_scenes(count: int, seed: int) -> tuple[list[Scene], list[Image.Image]]:
    """Scenes for the prompts, and edge maps (RGB) of the same shapes in other colours and a random layout."""
    rng = random.Random(seed)
    drawn = [anywhere(scene) for scene in unseen_scenes(count, seed)]
    maps = [edge_picture(canny(draw(_recoloured(scene, rng), rng))) for scene in drawn]
    return [told(scene) for scene in drawn], maps


def _recoloured(scene: Scene, rng: random.Random) -> Scene:
    background, *colours = rng.sample(list(COLOURS), 1 + len(scene.things))
    things = tuple(replace(thing, colour=colour) for thing, colour in zip(scene.things, colours, strict=True))
    return replace(scene, background=background, things=things)


def add_controlnet(pipeline: Any, folder: Path) -> Any:
    """A ControlNet pipeline on the same networks."""
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    controlnet = ControlNetModel.from_pretrained(folder, local_files_only=True)
    controlled: Any = StableDiffusionControlNetPipeline(**pipeline.components, controlnet=controlnet)
    controlled.set_progress_bar_config(disable=True)
    return controlled


def mean_f1(maps: list[Image.Image], pictures: list[Image.Image]) -> float:
    """Mean edge F1 between pictures and maps."""
    scores = [
        edge_f1(canny(picture), np.asarray(given)[..., 0] > 0) for given, picture in zip(maps, pictures, strict=True)
    ]
    return float(np.mean(scores))


def styled_pictures(
    pipeline: Any, style: str, file: Path, wanted: list[Scene], how: Sampling, weights: Sequence[float] = WEIGHTS
) -> list[list[Image.Image]]:
    """One row of pictures per weight."""
    pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=style, local_files_only=True)
    rows = []
    for weight in weights:
        pipeline.set_adapters(style, weight)
        rows.append(how.pictures(pipeline, [caption(scene) for scene in wanted]))
    pipeline.unload_lora_weights()
    return rows


def strengths(style: str, plain: list[Image.Image], rows: list[list[Image.Image]]) -> list[float]:
    """Mean style strength of each row."""
    return [float(np.mean([style_strength(style, *pair) for pair in zip(plain, row, strict=True)])) for row in rows]


def sheet(rows: list[list[Image.Image]]) -> Image.Image:
    """Contact sheet: the first SHEET pictures of each row, at twice the size."""
    pixels = np.concatenate([np.concatenate([np.asarray(picture) for picture in row[:SHEET]], 1) for row in rows], 0)
    return Image.fromarray(pixels.repeat(2, axis=0).repeat(2, axis=1))


def judge_controlnet(pipeline: Any, folder: Path, count: int, seed: int, how: Sampling) -> tuple[bool, Image.Image]:
    """Print the scores. Returns whether they reach the bars, and a sheet: maps, with, without."""
    wanted, maps = controlled_scenes(count, seed)
    prompts = [caption(scene) for scene in wanted]
    without = how.pictures(pipeline, prompts)
    with_maps = how.pictures(add_controlnet(pipeline, folder), prompts, maps)
    follows, by_chance = mean_f1(maps, with_maps), mean_f1(maps, without)
    totals = score(wanted, with_maps)
    print(f"controlnet: edge F1 {follows:.3f} with, {by_chance:.3f} without")
    # Positions are the map's here, and not to be asked for.
    print(f"{report({name: totals[name] for name in ('colours', 'shapes', 'relation')})}\n")
    kept = totals["colours"][0] >= KEPT * count
    return follows >= FOLLOWS and by_chance <= BY_CHANCE and kept, sheet([maps, with_maps, without])


def judge_lora(pipeline: Any, style: str, file: Path, count: int, seed: int, how: Sampling) -> tuple[bool, Image.Image]:
    """Print the scores. Returns whether they reach the bars, and a sheet: one row per weight."""
    wanted = unseen_scenes(count, seed)
    plain = how.pictures(pipeline, [caption(scene) for scene in wanted])
    rows = styled_pictures(pipeline, style, file, wanted, how)
    same = all(one.tobytes() == other.tobytes() for one, other in zip(plain, rows[0], strict=True))
    growing = strengths(style, plain, rows)
    half, full = growing[WEIGHTS.index(0.5)], growing[WEIGHTS.index(1.0)]
    totals = score(wanted, rows[-1], style)
    print(f"{style}: {dict(zip(WEIGHTS, (round(s, 3) for s in growing), strict=True))}, at 0 as without: {same}")
    print(f"{report(totals)}\n")
    kept = totals["colours"][0] >= KEPT * count
    grows = growing == sorted(growing) and half >= SEEN[style] and full >= STYLED
    return same and grows and kept, sheet(rows)


def main(
    model: Annotated[Path, typer.Option(help="Model folder.")] = MODEL_PATH,
    adapters: Annotated[Path, typer.Option(help="Folder of its adapters.")] = ADAPTERS_PATH,
    count: Annotated[int, typer.Option(min=2, help="Pictures of each kind.")] = 60,
    steps: Annotated[int, typer.Option(min=1, help="Inference steps a picture.")] = 25,
    scheduler: Annotated[str, typer.Option(help="Name of a diffusers scheduler class.")] = "DDIMScheduler",
    guidance: Annotated[float, typer.Option(help="Guidance scale.")] = 3.0,
    seed: Annotated[int, typer.Option(help="Of the scenes.")] = 1,
    save: Annotated[Path | None, typer.Option(help="Folder for the sheets.")] = None,
    threads: Annotated[int, typer.Option(help="Threads on a CPU.")] = 1,
) -> None:
    """Score the adapters on held-out prompts and maps."""
    import torch

    torch.set_num_threads(threads)
    how = Sampling(steps, scheduler, guidance)
    pipeline = load_pipeline(model, scheduler)
    results = {"controlnet": judge_controlnet(pipeline, adapters / CONTROLNET_PATH.name, count, seed, how)}
    for style, file in LORA_PATHS.items():
        results[style] = judge_lora(pipeline, style, adapters / file.name, count, seed, how)
    for name, (_, picture) in results.items():
        if save:
            save.mkdir(parents=True, exist_ok=True)
            picture.save(save / f"{name}.png")
    raise typer.Exit(0 if all(passed for passed, _ in results.values()) else 1)


if __name__ == "__main__":
    typer.run(main)
