"""Preprocessors without networks: control maps by OpenCV and NumPy, in the form that public ControlNets take.

Each function maps (height, width, 3) uint8 RGB to the same, without state, and does not write into its input. Edges and
lines are white on black. Lengths are in pixels of the input; levels are 8-bit, 0 black to 255 white; a step is the
difference in levels across an edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from darkroom_plugins import hookimpl
from darkroom_plugins.contract import Preprocessor

darkroom_api_version = 1

Pixels = NDArray[Any]


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Canny(Options):
    low_threshold: Annotated[float, Field(ge=0, le=2040, description="L1 Sobel gradient where edges go on.")] = 100
    high_threshold: Annotated[float, Field(ge=0, le=2040, description="L1 Sobel gradient where edges begin.")] = 200
    blur: Annotated[float, Field(ge=0, le=10, description="Sigma of a Gaussian before it, in pixels; 0: none.")] = 0

    @model_validator(mode="after")
    def _ordered(self) -> Canny:
        low, high = self.low_threshold, self.high_threshold
        if low >= high:
            raise ValueError(f"low_threshold must be below high_threshold, not {low:g} and {high:g}")
        return self


def canny(pixels: Pixels, options: Canny) -> Pixels:
    """Canny 1986, as cv2.Canny on RGB: edges of the channel with the greatest gradient, one pixel wide."""
    smooth = _gaussian(pixels, options.blur) if options.blur else pixels
    return _three(cv2.Canny(smooth, options.low_threshold, options.high_threshold))


class SoftEdge(Options):
    sigma: Annotated[float, Field(ge=0.3, le=20, description="Half the width of edges, in pixels.")] = 2
    gain: Annotated[float, Field(ge=0.1, le=50, description="Brightness of an edge over the levels of its step.")] = 2


def soft_edge(pixels: Pixels, options: SoftEdge) -> Pixels:
    """The gradient magnitude (cv2.Scharr after a Gaussian), compressed by tanh."""
    return _grey(255 * np.tanh(options.gain * _edges(pixels, options.sigma) / 255))


class Lines(Options):
    sigma: Annotated[float, Field(ge=0.3, le=10, description="About half the lines' width, in pixels.")] = 1
    contrast: Annotated[float, Field(ge=1, le=255, description="Step, in levels, drawn in full; none under half.")] = 64


def lines(pixels: Pixels, options: Lines) -> Pixels:
    """A line drawing in soft thin lines."""
    return _grey(255 * _strokes(pixels, options.sigma, options.contrast))


class Scribble(Options):
    sigma: Annotated[float, Field(ge=0.3, le=20, description="Size of the details left out, in pixels.")] = 1.5
    contrast: Annotated[float, Field(ge=1, le=255, description="Step, in levels, surely drawn; none under half.")] = 72
    widen: Annotated[int, Field(ge=0, le=32, description="How much wider lines get on each side, in pixels.")] = 1


def scribble(pixels: Pixels, options: Scribble) -> Pixels:
    """Binary lines, widened by cv2.dilate."""
    drawn = (_strokes(pixels, options.sigma, options.contrast) > 0.5).astype(np.uint8) * 255
    return _three(cv2.dilate(drawn, _disk(options.widen)))


class StraightLines(Options):
    min_length: Annotated[float, Field(ge=0, le=1, description="Shortest line, in parts of the shorter side.")] = 0.05
    thickness: Annotated[int, Field(ge=1, le=16, description="Width of the lines, in pixels.")] = 1


def straight_lines(pixels: Pixels, options: StraightLines) -> Pixels:
    """LSD (von Gioi et al. 2010), as cv2.createLineSegmentDetector: line segments in white."""
    found = cv2.createLineSegmentDetector().detect(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))[0]
    shortest = options.min_length * min(pixels.shape[:2])
    drawn = np.zeros(pixels.shape[:2], np.uint8)
    for x1, y1, x2, y2 in [] if found is None else found.reshape(-1, 4).tolist():
        if math.hypot(x2 - x1, y2 - y1) >= shortest:
            cv2.line(drawn, (round(x1), round(y1)), (round(x2), round(y2)), 255, options.thickness)
    return _three(drawn)


class Blur(Options):
    sigma: Annotated[float, Field(ge=0.1, le=64, description="Sigma of the Gaussian, in pixels.")] = 9


def blur(pixels: Pixels, options: Blur) -> Pixels:
    """cv2.GaussianBlur."""
    return _gaussian(pixels, options.sigma)


class Tile(Options):
    factor: Annotated[float, Field(ge=1, le=64, description="How many times smaller; 1: as it is.")] = 4


def tile(pixels: Pixels, options: Tile) -> Pixels:
    """Without details: cv2.resize down with INTER_AREA, back up with INTER_CUBIC."""
    return _through(pixels, 1 / options.factor, cv2.INTER_CUBIC)


class ColorGrid(Options):
    cells: Annotated[int, Field(ge=1, le=256, description="Cells along the shorter side; they are about square.")] = 8


def color_grid(pixels: Pixels, options: ColorGrid) -> Pixels:
    """Each cell in its mean colour. T2I-Adapter's maps have cells of 64 pixels, 8 x 8 in 512 x 512."""
    return _through(pixels, min(1, options.cells / min(pixels.shape[:2])), cv2.INTER_NEAREST)


class Gray(Options):
    measure: Annotated[
        Literal["luma", "lightness", "value"],
        Field(description="luma: of BT.601, as black and white photos; lightness: L* of CIELAB; value: V of HSV."),
    ] = "luma"
    gamma: Annotated[float, Field(ge=0.1, le=10, description="Exponent; below 1 brighter, above darker.")] = 1


def gray(pixels: Pixels, options: Gray) -> Pixels:
    """Brightness without colour, as cv2.cvtColor computes it."""
    if options.measure == "lightness":
        levels = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)[..., 0]
    else:
        levels = pixels.max(axis=2) if options.measure == "value" else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return _grey(255 * (levels / 255) ** options.gamma)


def invert(pixels: Pixels, options: None) -> Pixels:
    """255 minus each level."""
    return 255 - pixels


class Threshold(Options):
    level: Annotated[int | None, Field(ge=0, le=255, description="Luma above it is white; unset: Otsu's.")] = None
    invert: Annotated[bool, Field(description="White below the level: for dark lines on paper.")] = False


def threshold(pixels: Pixels, options: Threshold) -> Pixels:
    """cv2.threshold, by default at the level of Otsu 1979."""
    kind = cv2.THRESH_BINARY_INV if options.invert else cv2.THRESH_BINARY
    if options.level is None:
        kind |= cv2.THRESH_OTSU
    return _three(cv2.threshold(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), options.level or 0, 255, kind)[1])


class Shuffle(Options):
    seed: Annotated[int, Field(ge=0, le=2**32 - 1, description="Of the random flow.")] = 0
    scale: Annotated[float, Field(ge=0.05, le=1, description="Of the flow, in parts of the longer side.")] = 0.5


def shuffle(pixels: Pixels, options: Shuffle) -> Pixels:
    """Content shuffle of ControlNet 1.1 (Zhang 2023): the picture warped by a smooth random flow (cv2.remap, for sides
    up to 32766 pixels)."""
    height, width = pixels.shape[:2]
    spacing = max(1, round(options.scale * max(height, width)))
    down, across = _interpolation(height, spacing), _interpolation(width, spacing)
    noise = np.random.default_rng(options.seed).random((2, down.shape[1], across.shape[1]))
    x, y = (_spread(down @ each @ across.T, side) for each, side in zip(noise, (width, height), strict=True))
    return cv2.remap(pixels, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _interpolation(side: int, spacing: int) -> Pixels:
    """Cubic interpolation weights of `side` positions from knots `spacing` apart: (side, knots)."""
    knots = math.ceil(side / spacing) + 2
    return cv2.resize(np.eye(knots), (knots, knots * spacing), interpolation=cv2.INTER_CUBIC)[spacing : spacing + side]


def _spread(values: Pixels, side: int) -> Pixels:
    """The values rescaled to 0 to side - 1, as float32."""
    spread: Pixels = (values - values.min()) * ((side - 1) / max(np.ptp(values), 1e-9))
    return spread.astype(np.float32)


def _strokes(pixels: Pixels, sigma: float, contrast: float) -> Pixels:
    """Lines, (h, w), 0 to 1, after XDoG (Winnemöller et al. 2012): the greater of a difference of Gaussians and the
    edge strength, divided by its local maximum, so that lines are thin at any contrast."""
    luma = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    darker = _gaussian(luma, 1.6 * sigma) - _gaussian(
        luma, sigma
    )  # 1.6: approximates a Laplacian (Marr, Hildreth 1980)
    steps = np.maximum(darker / 0.112, _edges(pixels, sigma))  # 0.112: its maximum at a step of 1
    local_maxima = cv2.dilate(steps, _disk(round(2 * sigma)))
    return np.clip(2.5 * steps / np.maximum(local_maxima, contrast) - 1.25, 0, 1)


def _edges(pixels: Pixels, sigma: float) -> Pixels:
    """Edge strength, (h, w): the greatest channel's gradient after a Gaussian, scaled to the step of an ideal edge."""
    smooth = _gaussian(pixels.astype(np.float32), sigma)
    dx, dy = (cv2.Scharr(smooth, cv2.CV_32F, x, 1 - x, scale=1 / 32) for x in (1, 0))
    slope = math.erf(1 / (sigma * math.sqrt(2))) / 2  # Scharr at the middle of a step of 1
    steps: Pixels = np.hypot(dx, dy).max(axis=2) / slope
    return steps


def _disk(radius: int) -> Pixels:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _gaussian(pixels: Pixels, sigma: float) -> Pixels:
    return cv2.GaussianBlur(pixels, (0, 0), sigma)


def _through(pixels: Pixels, scale: float, up: int) -> Pixels:
    """Resized by `scale`, to at least one pixel, and back."""
    height, width = pixels.shape[:2]
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(cv2.resize(pixels, small, interpolation=cv2.INTER_AREA), (width, height), interpolation=up)


def _grey(levels: Pixels) -> Pixels:
    return _three(np.clip(np.rint(levels), 0, 255).astype(np.uint8))


def _three(levels: Pixels) -> Pixels:
    """(h, w) to (h, w, 3)."""
    return cv2.merge([levels, levels, levels])


def _entry(name: str, run: Callable[[Pixels, Any], Pixels], options: type[Options] | None, what: str) -> Preprocessor:
    return Preprocessor(name=name, run=run, description=what, Parameters=options)


ENTRIES = (
    _entry("canny", canny, Canny, "Sharp edges one pixel wide; for canny ControlNets and T2I adapters."),
    _entry(
        "soft-edge", soft_edge, SoftEdge, "Wide grey edges; for softedge and hed ControlNets, instead of a network."
    ),
    _entry("lines", lines, Lines, "A line drawing; for lineart and lineart_anime ControlNets, instead of a network."),
    _entry(
        "scribble", scribble, Scribble, "Outlines as of a thick pen; for scribble ControlNets, sketch T2I adapters."
    ),
    _entry("straight-lines", straight_lines, StraightLines, "Straight lines, as of buildings; for mlsd ControlNets."),
    _entry("blur", blur, Blur, "The picture blurred; for blur ControlNets, and tile ones."),
    _entry("tile", tile, Tile, "The picture in a lower resolution; for tile ControlNets, which add details."),
    _entry("color-grid", color_grid, ColorGrid, "A grid of mean colours; for color T2I adapters."),
    _entry("gray", gray, Gray, "The picture without colour; for gray and recolor ControlNets."),
    _entry("invert", invert, None, "The negative; makes of a drawing in black on white what lineart ControlNets take."),
    _entry("threshold", threshold, Threshold, "Black and white; for scans with scribble, and for QR code ControlNets."),
    _entry("shuffle", shuffle, Shuffle, "Colours and textures out of their places; for shuffle ControlNets."),
)


@hookimpl
def darkroom_preprocessors() -> Sequence[Preprocessor]:
    return ENTRIES
