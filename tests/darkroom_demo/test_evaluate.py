import pytest
from PIL import Image

from darkroom_demo.data import Scene, Thing
from darkroom_demo.evaluate import originals, passes, report, score, unseen_scenes
from darkroom_demo.measure import measure


def test_originals_are_measured_right() -> None:
    wanted = unseen_scenes(150, seed=3)
    totals = score(wanted, originals(wanted, seed=4))
    assert passes(totals, of_originals=True), report(totals)


def test_shuffled_prompts_are_near_chance() -> None:
    wanted = unseen_scenes(150, seed=3)
    totals = score(wanted[1:] + wanted[:1], originals(wanted, seed=4))
    assert not passes(totals, of_originals=False)
    assert totals["background"][0] < 0.2 * 150
    assert totals["colours"][0] < 0.05 * 150
    assert totals["shapes"][0] < 0.15 * 150


def test_two_things_are_told_apart_by_place() -> None:
    scene = Scene("white", (Thing("green", "square"), Thing("purple", "triangle")), relation="left of")
    swapped = Scene("white", (Thing("purple", "triangle"), Thing("green", "square")), relation="left of")
    pictures = originals([scene], seed=0)
    assert score([scene], pictures)["relation"] == (1, 1)
    assert score([swapped], pictures)["relation"] == (0, 1)
    assert score([swapped], pictures)["colours"] == (1, 1)


@pytest.mark.parametrize("size", [(64, 64), (128, 128), (96, 64), (8, 8)])
def test_an_empty_picture_shows_nothing(size: tuple[int, int]) -> None:
    seen = measure(Image.new("RGB", size, (250, 225, 45)))
    assert seen.background == "yellow"
    assert not seen.blobs


def test_noise_is_measured_without_an_error() -> None:
    noise = Image.effect_noise((64, 64), 200).convert("RGB")
    assert measure(noise).background
