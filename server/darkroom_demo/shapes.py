"""Colours and shapes of the demo's data set, and their rasterisation.

A shape fills the square [-1, 1]² (x to the right, y down) as one or more polygons; a ring is a disc with a hole.
"""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

Point = tuple[float, float]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "green": (25, 150, 55),
    "blue": (35, 65, 220),
    "yellow": (250, 225, 45),
    "orange": (250, 130, 20),
    "purple": (135, 40, 175),
    "pink": (255, 155, 195),
    "cyan": (60, 215, 230),
    "brown": (115, 65, 30),
    "gray": (128, 128, 128),
    "black": (12, 12, 12),
    "white": (248, 248, 248),
}
"""Name to sRGB; chosen so that any two differ by at least 90 in Euclidean distance."""

SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "diamond", "cross")

SUPERSAMPLING = 4
"""Pictures are drawn this many times larger and averaged down, so that edges are smooth."""

RING_HOLE = 0.52
"""The radius of a ring's hole, of the ring's own radius."""


def _star() -> list[Point]:
    radii = (1.05, 0.44)
    angles = [math.pi * (i / 5 - 0.5) for i in range(10)]
    return [(radii[i % 2] * math.cos(a), radii[i % 2] * math.sin(a) + 0.08) for i, a in enumerate(angles)]


def _heart() -> list[Point]:
    points = []
    for i in range(64):
        t = 2 * math.pi * i / 64
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 16.5, -(y + 2.5) / 15.5))
    return points


def _cross(arm: float = 0.34) -> list[Point]:
    corner = [(-arm, -1.0), (arm, -1.0), (arm, -arm)]
    turned = []
    for quarter in range(4):
        c, s = (1, 0, -1, 0)[quarter], (0, 1, 0, -1)[quarter]
        turned += [(c * x - s * y, s * x + c * y) for x, y in corner]
    return turned


POLYGONS: dict[str, list[Point]] = {
    "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
    "triangle": [(0.0, -0.95), (1.0, 0.85), (-1.0, 0.85)],
    "star": _star(),
    "heart": _heart(),
    "diamond": [(0.0, -1.0), (0.78, 0.0), (0.0, 1.0), (-0.78, 0.0)],
    "cross": _cross(),
}


def shape_mask(shape: str, centre: Point, radius: float, image_size: int) -> Image.Image:
    """A shape as coverage, 0 to 255, mode L, (image_size, image_size), with smooth edges.

    `centre` and `radius` are in pixels of the finished picture.
    """
    scale = SUPERSAMPLING
    mask = Image.new("L", (image_size * scale, image_size * scale))
    draw = ImageDraw.Draw(mask)
    cx, cy, r = centre[0] * scale, centre[1] * scale, radius * scale
    if shape in POLYGONS:
        draw.polygon(_placed(POLYGONS[shape], cx, cy, r), fill=255)
    else:
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=255)
        if shape == "ring":
            hole = r * RING_HOLE
            draw.ellipse((cx - hole, cy - hole, cx + hole, cy + hole), fill=0)
    return mask.reduce(scale)


def _placed(points: Sequence[Point], cx: float, cy: float, radius: float) -> list[Point]:
    return [(cx + x * radius, cy + y * radius) for x, y in points]
