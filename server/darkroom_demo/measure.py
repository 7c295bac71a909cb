"""Recognition of a demo picture's contents from its pixels alone.

- Background: the named colour nearest to the median of the picture's outermost pixels.
- Things: 8-connected regions of pixels further from that median than half its distance to the thing's colour; regions
  under SPECK of the picture's area are ignored.
- Colour of a thing: the named colour nearest to the median of its inner pixels, those furthest from its edge.
- Shape: the region, scaled by the longer side of its bounding box to TEMPLATE pixels, is matched against templates of
  every shape at several sizes; the highest intersection over union wins.
- Styles: outlines are compared with outlined shapes. The gaps of stripes are first filled with the stripes' colour,
  and compared with shapes that were striped and filled in the same way.
- Position: the side of the middle on which the bounding box's centre lies, by more than MIDDLE of the width.
"""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .data import IMAGE_SIZE
from .shapes import COLOURS, SHAPES, shape_mask
from .styles import STYLES, styled

Floats = NDArray[np.float32]

SPECK = 0.005
TEMPLATE = 48
MIDDLE = 0.065
FAINT = 40.0
"""Pixels nearer than this to the background's RGB are background."""
SQUARE = np.ones((3, 3), np.uint8)
"""Each pixel's neighbours."""
GAP_KERNEL = np.ones((7, 1), np.uint8)
"""Closes gaps of stripes of up to 6 pixels."""
TEMPLATE_RADII = (6.0, 8.0, 10.0, 13.0, 16.0, 23.0)
"""In pixels of a picture of IMAGE_SIZE."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A detected thing: `x` and `y` are its centre in picture widths; `position` as in a scene."""

    colour: str
    shape: str
    x: float
    y: float

    @property
    def position(self) -> str:
        across, down = self.x - 0.5, self.y - 0.5
        if max(abs(across), abs(down)) < MIDDLE:
            return ""
        if abs(across) > abs(down):
            return "left" if across < 0 else "right"
        return "top" if down < 0 else "bottom"


@dataclass(frozen=True, slots=True)
class Seen:
    """The contents of a picture."""

    background: str
    blobs: tuple[Blob, ...]

    def ordered(self, relation: str) -> list[Blob]:
        """The things from left to right, or for "above" from top to bottom."""
        return sorted(self.blobs, key=lambda blob: blob.y if relation == "above" else blob.x)


def measure(picture: Image.Image, style: str = "") -> Seen:
    """The contents of a picture in that style. Pictures are resized to IMAGE_SIZE."""
    pixels, background = _read(picture)
    if style == "stripes":
        pixels = _gaps_filled(pixels, background)
    blobs = (_blob(pixels, background, region, style) for region in _regions(pixels, background))
    return Seen(nearest_colour(background), tuple(blobs))


def style_strength(style: str, plain: Image.Image, picture: Image.Image) -> float:
    """How far a picture is from a plain one of the same scene to that scene in the style: 0 as plain, 1 in full.

    Of the plain picture's things the style keeps some pixels and leaves out others (those at an edge aside). It is how
    much background shows in those to be left out, less how much shows in those to be kept, each as a mean of 0 to 1.
    """
    before, old_background = _read(plain)
    pixels, background = _read(picture)
    left_out: list[Floats] = []
    kept: list[Floats] = []
    for region in _regions(before, old_background):
        shows = 1 - _coverage(pixels, background, _inner_colour(before, region))
        inside, stays = cv2.erode(region.astype(np.uint8), SQUARE) > 0, STYLES[style](region.astype(np.uint8) * 255)
        left_out.append(shows[inside & (cv2.dilate(stays, SQUARE) == 0)])
        kept.append(shows[inside & (stays > 0)])
    return _mean(left_out) - _mean(kept)


def _mean(parts: list[Floats]) -> float:
    count = sum(len(part) for part in parts)
    return sum(float(part.sum()) for part in parts) / max(count, 1)


def _read(picture: Image.Image) -> tuple[Floats, Floats]:
    """Pixels (IMAGE_SIZE, IMAGE_SIZE, 3) and the background's colour (3,)."""
    if picture.size != (IMAGE_SIZE, IMAGE_SIZE):
        picture = picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return pixels, np.median(rim, axis=0)


def _gaps_filled(pixels: Floats, background: Floats) -> Floats:
    """Background between two pieces of one colour, one above the other, in that colour."""
    names = np.array(list(COLOURS.values()), dtype=np.float32)
    nearest = np.linalg.norm(pixels[:, :, None] - names, axis=-1).argmin(axis=-1)
    away = np.linalg.norm(pixels - background, axis=-1) > FAINT
    filled = pixels.copy()
    for index, colour in enumerate(names):
        pieces = (away & (nearest == index)).astype(np.uint8)
        closed = cv2.morphologyEx(pieces, cv2.MORPH_CLOSE, GAP_KERNEL)
        filled[(closed > 0) & ~away] = colour
    return filled


def nearest_colour(rgb: Floats) -> str:
    """The name of the colour nearest to an RGB triple."""
    return min(COLOURS, key=lambda name: float(np.sum((rgb - np.array(COLOURS[name])) ** 2)))


def _regions(pixels: Floats, background: Floats) -> list[NDArray[np.bool_]]:
    """The masks (H, W) of the things."""
    away = np.linalg.norm(pixels - background, axis=-1)
    count, labels, stats, _ = cv2.connectedComponentsWithStats((away > FAINT).astype(np.uint8), connectivity=8)
    large = [i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] >= SPECK * labels.size]
    return [labels == label for label in large]


def _blob(pixels: Floats, background: Floats, region: NDArray[np.bool_], style: str) -> Blob:
    colour = _inner_colour(pixels, region)
    coverage = _coverage(pixels, background, colour) * region
    rows, columns = np.nonzero(coverage > 0.5)
    if not len(rows):
        rows, columns = np.nonzero(region)
    x, y = (columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2
    return Blob(nearest_colour(colour), _nearest_shape(coverage, style), x / pixels.shape[1], y / pixels.shape[0])


def _inner_colour(pixels: Floats, region: NDArray[np.bool_]) -> Floats:
    """The median RGB of the third of the region's pixels that lies deepest in it."""
    depth = cv2.distanceTransform(np.pad(region, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    deep = depth >= np.quantile(depth[region], 0.67)
    median: Floats = np.median(pixels[deep & region], axis=0)
    return median


def _coverage(pixels: Floats, background: Floats, colour: Floats) -> Floats:
    """How much of each pixel (H, W) the thing covers, 0 to 1: how far its RGB is on the way to the thing's."""
    way = colour - background
    share: Floats = np.clip((pixels - background) @ way / max(float(way @ way), 1.0), 0, 1)
    return share


def _nearest_shape(coverage: Floats, style: str) -> str:
    """The shape whose template overlaps most."""
    seen = _normalised(coverage)
    overlaps = {
        shape: max(
            float(np.minimum(seen, model).sum() / np.maximum(seen, model).sum()) for model in _templates(shape, style)
        )
        for shape in SHAPES
    }
    return max(overlaps, key=lambda shape: overlaps[shape])


def _normalised(coverage: Floats) -> Floats:
    """A shape's coverage cropped to its box and scaled to fit (TEMPLATE, TEMPLATE), centred."""
    rows, columns = np.nonzero(coverage > 0.3)
    if not len(rows):
        return np.ones((TEMPLATE, TEMPLATE), np.float32)
    box = coverage[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    edge = max(box.shape)
    high, low = edge - box.shape[0], edge - box.shape[1]
    square = np.pad(box, ((high // 2, high - high // 2), (low // 2, low - low // 2)))
    return np.asarray(cv2.resize(square, (TEMPLATE, TEMPLATE)), dtype=np.float32)


@cache
def _templates(shape: str, style: str) -> tuple[Floats, ...]:
    # Stripes lie where they lie in the picture, and so may cut a shape anywhere.
    rows = range(12) if style == "stripes" else (0,)
    places = [((IMAGE_SIZE / 2, IMAGE_SIZE / 2 + row), radius) for radius in TEMPLATE_RADII for row in rows]
    masks = (np.asarray(styled(shape_mask(shape, *place, IMAGE_SIZE), style)) for place in places)
    if style == "stripes":
        masks = (cv2.morphologyEx(mask, cv2.MORPH_CLOSE, GAP_KERNEL) for mask in masks)
    return tuple(_normalised((mask / 255).astype(np.float32)) for mask in masks)
