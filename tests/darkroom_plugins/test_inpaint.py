"""Masks of pictures become masks of latents: as in diffusers, but what is thinner than a latent is not lost."""

import itertools

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from darkroom_plugins.builtin.tasks.inpaint import latent_mask

FACTOR, EDGE = 8, 96
PLACES = st.tuples(st.integers(0, EDGE - 1), st.integers(0, EDGE - 1))


def as_diffusers(mask: np.ndarray) -> np.ndarray:
    size = [edge // FACTOR for edge in mask.shape]
    return torch.nn.functional.interpolate(torch.from_numpy(mask)[None, None].float(), size)[0, 0].bool().numpy()


def touched(mask: np.ndarray) -> np.ndarray:
    return torch.nn.functional.max_pool2d(torch.from_numpy(mask)[None].float(), FACTOR)[0].bool().numpy()


def drawn(kind: str, start: tuple[int, int], end: tuple[int, int], width: int) -> np.ndarray:
    """A form of at least this width in an empty mask."""
    pixels = np.zeros((EDGE, EDGE), np.uint8)
    if kind == "box":
        cv2.rectangle(pixels, start, end, 255, width)
        cv2.rectangle(pixels, start, end, 255, -1)
    elif kind == "line":
        cv2.line(pixels, start, end, 255, width)
    else:
        cv2.circle(pixels, start, width, 255, -1)
    return pixels > 0


def far_from_edges(mask: np.ndarray) -> bool:
    inner = mask[FACTOR:-FACTOR, FACTOR:-FACTOR]
    return bool(inner.sum() == mask.sum())


@given(st.sampled_from(["box", "line", "circle"]), PLACES, PLACES, st.integers(13, 30))
def test_thick_masks_are_as_in_diffusers(kind: str, start: tuple[int, int], end: tuple[int, int], width: int) -> None:
    mask = drawn(kind, start, end, width)
    if far_from_edges(mask):
        assert np.array_equal(latent_mask(mask, FACTOR), as_diffusers(mask))


@given(st.integers(0, EDGE - 1), st.integers(0, EDGE - 1), st.integers(FACTOR, EDGE), st.integers(FACTOR, EDGE))
def test_boxes_are_those_of_diffusers_at_any_place(left: int, top: int, width: int, height: int) -> None:
    left, top = min(left, EDGE - FACTOR), min(top, EDGE - FACTOR)
    mask = np.zeros((EDGE, EDGE), bool)
    mask[top : top + height, left : left + width] = True
    assert np.array_equal(latent_mask(mask, FACTOR), as_diffusers(mask))


@given(PLACES, PLACES, st.integers(1, 3))
def test_all_that_thin_lines_touch_is_repainted(start: tuple[int, int], end: tuple[int, int], width: int) -> None:
    mask = drawn("line", start, end, width)
    assert np.array_equal(latent_mask(mask, FACTOR), touched(mask))


@given(st.lists(PLACES, min_size=2, max_size=5), st.integers(1, 20))
def test_no_part_is_lost(places: list[tuple[int, int]], width: int) -> None:
    """No pixel of any mask is further than one and a half latents from one that is repainted."""
    mask = np.zeros((EDGE, EDGE), bool)
    for start, end in itertools.pairwise(places):
        mask |= drawn("line", start, end, width)
    found = latent_mask(mask, FACTOR)
    assert np.array_equal(found & touched(mask), found)
    near = np.ones((3 * FACTOR + 1,) * 2, np.uint8)
    assert cv2.dilate(found.astype(np.uint8).repeat(FACTOR, 0).repeat(FACTOR, 1), near)[mask].all()


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_at_every_factor(factor: int) -> None:
    mask = np.zeros((16, 16), bool)
    mask[5, 5] = True
    found = latent_mask(mask, factor)
    assert found.shape == (16 // factor, 16 // factor)
    assert np.argwhere(found).tolist() == [[5 // factor, 5 // factor]]
