import itertools
import random
from dataclasses import replace

import numpy as np
import pytest

from darkroom_demo.data import ANYWHERE, Scene, Thing, anywhere, draw, scenes, told
from darkroom_demo.edges import canny, edge_f1, edge_picture
from darkroom_demo.evaluate import originals, report, score, unseen_scenes
from darkroom_demo.measure import style_strength
from darkroom_demo.shapes import COLOURS
from darkroom_demo.styles import STYLES, stripe_rows

SQUARE = Scene("blue", (Thing("red", "square", "large"),))


def test_an_outline_shows_the_background_inside() -> None:
    pixels = np.asarray(draw(SQUARE, random.Random(0), style="outline"))
    assert tuple(pixels[32, 32]) == COLOURS["blue"]
    assert (pixels == COLOURS["red"]).all(axis=-1).sum() > 200


@pytest.mark.parametrize("size", [64, 128])
def test_stripes_show_the_background_between(size: int) -> None:
    column = np.asarray(draw(SQUARE, random.Random(0), size, "stripes"))[:, size // 2]
    inside = slice(size // 4, 3 * size // 4)
    red = (column == COLOURS["red"]).all(axis=-1)
    assert np.array_equal(red[inside], stripe_rows(size)[inside])


@pytest.mark.parametrize("style", STYLES)
def test_a_style_changes_neither_layout_nor_colours(style: str) -> None:
    for index, scene in enumerate(itertools.islice(scenes(0), 30)):
        plain, styled = (np.asarray(draw(scene, random.Random(index), style=name)) for name in ("", style))
        background = np.array(COLOURS[scene.background])
        assert ((styled == plain) | (np.abs(styled - background) < np.abs(plain - background) + 1)).all()


@pytest.mark.parametrize("style", STYLES)
def test_styled_originals_are_measured_right(style: str) -> None:
    wanted = unseen_scenes(100, seed=3)
    plain, styled = originals(wanted, seed=4), originals(wanted, seed=4, style=style)
    totals = score(wanted, styled, style)
    assert totals["all"][0] >= 95, report(totals)
    assert np.mean([style_strength(style, *pair) for pair in zip(plain, styled, strict=True)]) > 0.95
    assert np.mean([style_strength(style, picture, picture) for picture in plain]) == pytest.approx(0.0, abs=0.02)


@pytest.mark.parametrize("style", STYLES)
def test_a_style_is_as_strong_as_its_scene_says(style: str) -> None:
    wanted = unseen_scenes(30, seed=3)
    plain = originals(wanted, seed=4)
    for strength in (0.25, 0.5, 0.75):
        faded = originals([replace(scene, strength=strength) for scene in wanted], seed=4, style=style)
        measured = np.mean([style_strength(style, *pair) for pair in zip(plain, faded, strict=True)])
        assert measured == pytest.approx(strength, abs=0.05)


def test_a_style_does_not_pass_for_the_other() -> None:
    wanted = unseen_scenes(50, seed=3)
    plain, outlined = originals(wanted, seed=4), originals(wanted, seed=4, style="outline")
    assert np.mean([style_strength("stripes", *pair) for pair in zip(plain, outlined, strict=True)]) < 0.3


@pytest.mark.parametrize(("things", "relation"), [(1, ""), (2, "above")])
def test_things_may_lie_anywhere(things: int, relation: str) -> None:
    pair = (Thing("red", "circle", "small"), Thing("green", "star", "small"))
    scene = anywhere(Scene("blue", pair[:things], position="" if relation else "left", relation=relation))
    assert scene.position == ANYWHERE
    assert told(scene) == Scene(
        "blue", tuple(Thing(thing.colour, thing.shape) for thing in pair[:things]), "", relation
    )
    places = [np.argwhere(canny(draw(scene, random.Random(seed)))) for seed in range(40)]
    assert np.std([place.mean(axis=0)[1] for place in places]) > 6
    assert min(place.min() for place in places) >= 1
    assert max(place.max() for place in places) <= 62


def test_every_edge_is_found_in_every_colour() -> None:
    for index, scene in enumerate(unseen_scenes(60, seed=5)):
        edges = canny(draw(scene, random.Random(index)))
        black = Scene("white", tuple(Thing("black", thing.shape, thing.size) for thing in scene.things))
        black = Scene("white", black.things, scene.position, scene.relation)
        assert edge_f1(edges, canny(draw(black, random.Random(index)))) > 0.9


def test_edge_f1() -> None:
    edges = np.zeros((64, 64), bool)
    edges[10, 10:50] = True
    assert edge_f1(edges, edges) == 1.0
    assert edge_f1(np.roll(edges, 1, axis=0), edges) == 1.0
    assert edge_f1(np.roll(edges, 2, axis=0), edges) == 0.0
    half = edges.copy()
    half[:, 30:] = False
    assert edge_f1(half, edges) == pytest.approx(2 / 3, abs=0.03)
    assert edge_f1(np.zeros_like(edges), edges) == edge_f1(np.zeros_like(edges), np.zeros_like(edges)) == 0.0
    assert edge_picture(edges).mode == "RGB"
    assert canny(edge_picture(edges)).any()
