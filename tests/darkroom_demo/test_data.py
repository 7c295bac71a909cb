import itertools
import random

import numpy as np
import pytest

from darkroom_demo.captions import caption, random_caption
from darkroom_demo.data import (
    POSITIONS,
    RELATIONS,
    SIZES,
    Scene,
    Thing,
    draw,
    is_held_out,
    scenes,
)
from darkroom_demo.shapes import COLOURS, SHAPES

RED_CIRCLE = Scene("blue", (Thing("red", "circle"),))


def test_same_seed_draws_same_data() -> None:
    first, second = (list(itertools.islice(scenes(7), 50)) for _ in range(2))
    assert first == second
    assert first != list(itertools.islice(scenes(8), 50))
    for scene in first[:10]:
        pictures = [np.asarray(draw(scene, random.Random(3))) for _ in range(2)]
        assert np.array_equal(*pictures)


def test_splits_are_disjoint_and_stable() -> None:
    training = {scene.key() for scene in itertools.islice(scenes(0), 5000)}
    unseen = {scene.key() for scene in itertools.islice(scenes(0, held_out=True), 1000)}
    assert not training & unseen
    alone = {
        Scene(scene.background, (thing,)).key() for scene in itertools.islice(scenes(1), 2000) for thing in scene.things
    }
    assert not alone & unseen
    # A change of the split would let an old model be scored on what it has seen.
    assert is_held_out(Scene("brown", (Thing("red", "circle"),))) is False
    assert 0.05 < np.mean([is_held_out(single) for single in _singles()]) < 0.15


def _singles() -> list[Scene]:
    colours = itertools.permutations(COLOURS, 2)
    return [Scene(background, (Thing(colour, shape),)) for background, colour in colours for shape in SHAPES]


def test_the_whole_vocabulary_is_drawn() -> None:
    drawn = list(itertools.islice(scenes(0), 3000))
    things = [thing for scene in drawn for thing in scene.things]
    assert {thing.colour for thing in things} == {scene.background for scene in drawn} == set(COLOURS)
    assert {thing.shape for thing in things} == set(SHAPES)
    assert {thing.size for thing in things} == {"", *SIZES}
    assert {scene.position for scene in drawn} == {"", *POSITIONS}
    assert {scene.relation for scene in drawn} == {"", *RELATIONS}
    assert all(scene.background not in {thing.colour for thing in scene.things} for scene in drawn)


def test_colours_are_well_apart() -> None:
    for (one, a), (other, b) in itertools.combinations(COLOURS.items(), 2):
        assert np.linalg.norm(np.subtract(a, b)) > 90, (one, other)


@pytest.mark.parametrize(
    ("scene", "text"),
    [
        (RED_CIRCLE, "a red circle on a blue background"),
        (Scene("black", (Thing("yellow", "star", "large"),)), "a large yellow star on a black background"),
        (
            Scene("cyan", (Thing("pink", "heart", "small"),), position="top"),
            "a small pink heart at the top on a cyan background",
        ),
        (
            Scene("white", (Thing("green", "square"), Thing("purple", "triangle")), relation="left of"),
            "a green square left of a purple triangle on a white background",
        ),
        (Scene("orange", (Thing("orange", "ring"),)), "an orange ring on an orange background"),
    ],
)
def test_captions(scene: Scene, text: str) -> None:
    assert caption(scene) == text


def test_captions_vary() -> None:
    rng = random.Random(0)
    texts = {random_caption(RED_CIRCLE, rng) for _ in range(500)}
    assert {"red circle, blue background", "a red circle on a blue background"} <= texts
    assert len(texts) > 30
    assert all("red" in text.lower() and "circle" in text.lower() for text in texts)
    assert 0 < sum("blue" not in text.lower() for text in texts) < 0.3 * len(texts)


@pytest.mark.parametrize("size", [64, 128])
def test_pictures_have_smooth_edges_and_exact_colours(size: int) -> None:
    pixels = np.asarray(draw(RED_CIRCLE, random.Random(0), size))
    assert pixels.shape == (size, size, 3)
    assert tuple(pixels[0, 0]) == COLOURS["blue"]
    assert tuple(pixels[size // 2, size // 2]) == COLOURS["red"]
    assert 10 < len(np.unique(pixels.reshape(-1, 3), axis=0)) < 100
