"""The demo's data set: scenes of one or two coloured shapes, drawn as pictures and told as captions.

A scene is words only; drawing it adds the jitter of place and size, captioning it the variety of phrasing. Both take a
`random.Random`, so a seed gives the same data everywhere. Scenes are split by a stable hash of what is in them: a
held-out scene's combination of colours and shapes is never drawn for training, at any size or place.
"""

import hashlib
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from PIL import Image

from .shapes import COLOURS, SHAPES, shape_mask
from .styles import styled

SIZES = ("small", "large")
POSITIONS = ("left", "right", "top", "bottom")
RELATIONS = ("left of", "above")
ANYWHERE = "anywhere"
"""A position without a word for it: no scene of the two splits has it, `told` has to be said instead."""

HELD_OUT_PERCENT = 10
IMAGE_SIZE = 64
"""Width and height of a picture in pixels; everything scales with it."""

SINGLE_RADII = {"small": (0.13, 0.16), "": (0.22, 0.26), "large": (0.31, 0.34)}
"""Radius of a single shape by its size word, as a range in image widths; no size word is medium."""
PAIR_RADII = {"small": (0.11, 0.13), "": (0.155, 0.175), "large": (0.20, 0.22)}
"""The same where two shapes share the picture."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape: its colour, its kind, and "small", "large" or "" (medium, and no word for it)."""

    colour: str
    shape: str
    size: str = ""


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows: one thing, at `position` or ("") the middle; or two, the first `relation` the second."""

    background: str
    things: tuple[Thing, ...]
    position: str = ""
    relation: str = ""
    strength: float = 1.0
    """Of the style that it is drawn in, if any: 0 to 1."""

    def key(self) -> str:
        """The hash key of the split: colours, shapes and relation, without sizes and position."""
        things = "+".join(f"{thing.colour} {thing.shape}" for thing in self.things)
        return f"{things}|{self.relation}|{self.background}"


def is_held_out(scene: Scene) -> bool:
    """Whether training never sees this scene, nor either of its things alone on its background."""
    if _hashed_out(scene.key()):
        return True
    return any(_hashed_out(Scene(scene.background, (thing,)).key()) for thing in scene.things)


def _hashed_out(key: str) -> bool:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 100 < HELD_OUT_PERCENT


def random_scene(rng: random.Random, held_out: bool = False) -> Scene:
    """A scene of the training split, or of the held-out one. Six in ten show a single thing."""
    while True:
        scene = _single(rng) if rng.random() < 0.6 else _pair(rng)
        if is_held_out(scene) == held_out:
            return scene


def anywhere(scene: Scene) -> Scene:
    """The scene with its things wherever there is room; of two, the first stays `relation` the second."""
    return replace(scene, position=ANYWHERE)


def told(scene: Scene) -> Scene:
    """The scene without sizes and position, for captions whose layout comes from a control map."""
    return replace(scene, things=tuple(replace(thing, size="") for thing in scene.things), position="")


def scenes(seed: int, held_out: bool = False) -> Iterator[Scene]:
    """Endless scenes of one split, the same for the same seed."""
    rng = random.Random(seed)
    return (random_scene(rng, held_out) for _ in itertools.count())


def _single(rng: random.Random) -> Scene:
    background, colour = rng.sample(list(COLOURS), 2)
    size = rng.choice(("", *SIZES))
    position = rng.choice(("", "", *POSITIONS))
    return Scene(background, (Thing(colour, rng.choice(SHAPES), size),), position=position)


def _pair(rng: random.Random) -> Scene:
    background, *others = rng.sample(list(COLOURS), 3)
    first, second = (Thing(colour, rng.choice(SHAPES), rng.choice(("", "", *SIZES))) for colour in others)
    return Scene(background, (first, second), relation=rng.choice(RELATIONS))


def draw(scene: Scene, rng: random.Random, image_size: int = IMAGE_SIZE, style: str = "") -> Image.Image:
    """The scene as an RGB picture of image_size × image_size pixels, in one of `styles.STYLES` or ("") plain."""
    picture = Image.new("RGB", (image_size, image_size), COLOURS[scene.background])
    for thing, (x, y, radius) in zip(scene.things, _layout(scene, rng), strict=True):
        mask = shape_mask(thing.shape, (x * image_size, y * image_size), radius * image_size, image_size)
        picture.paste(COLOURS[thing.colour], mask=styled(mask, style, scene.strength))
    return picture


def _layout(scene: Scene, rng: random.Random) -> list[tuple[float, float, float]]:
    """Centre x, centre y and radius of each thing, in image widths."""
    radii = SINGLE_RADII if len(scene.things) == 1 else PAIR_RADII
    sizes = [rng.uniform(*radii[thing.size]) for thing in scene.things]
    if len(sizes) == 1:
        return [(*_place(scene.position, sizes[0], rng), sizes[0])]
    return _side_by_side(scene.relation, sizes, rng, roaming=scene.position == ANYWHERE)


def _place(position: str, radius: float, rng: random.Random) -> tuple[float, float]:
    """The centre of a single thing: in the middle, or close to the side that `position` names."""
    if position == ANYWHERE:
        return rng.uniform(0.03 + radius, 0.97 - radius), rng.uniform(0.03 + radius, 0.97 - radius)
    x, y = rng.uniform(0.47, 0.53), rng.uniform(0.47, 0.53)
    near = 0.03 + radius + rng.uniform(0.0, 0.03)
    sides = {"left": (near, y), "right": (1 - near, y), "top": (x, near), "bottom": (x, 1 - near), "": (x, y)}
    return sides[position]


def _side_by_side(
    relation: str, sizes: list[float], rng: random.Random, roaming: bool
) -> list[tuple[float, float, float]]:
    """Two things along an axis, around a quarter and three quarters of it: they never touch. Across it they lie in the
    middle, or, roaming, anywhere."""
    along = [0.26 + rng.uniform(-0.02, 0.02), 0.74 + rng.uniform(-0.02, 0.02)]
    across = [rng.uniform(0.03 + r, 0.97 - r) if roaming else rng.uniform(0.45, 0.55) for r in sizes]
    if relation == "left of":
        return [(a, b, r) for a, b, r in zip(along, across, sizes, strict=True)]
    return [(b, a, r) for a, b, r in zip(along, across, sizes, strict=True)]
