"""Fill styles of shapes, which the style LoRAs teach the model: outline and stripes.

A style works on a shape's coverage mask, so the picture keeps its background and the shape its colour.
"""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Mask = NDArray[np.uint8]

LINE = 3 / 64
"""Width of an outline, in image widths."""
STRIPE, GAP = 8 / 64, 4 / 64
"""Height of a stripe and of the gap below it, in image widths."""


def outline(mask: Mask) -> Mask:
    """What a disc of the line's width, rolled along the inside of the edge, covers: (H, W), 0 to 255."""
    width = max(1, round(LINE * len(mask)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    return (mask - cv2.erode(mask, disc, borderValue=0)).astype(np.uint8)


def stripes(mask: Mask) -> Mask:
    """The shape with every other horizontal band of the picture, from the top, removed: (H, W), 0 to 255."""
    return np.where(stripe_rows(len(mask))[:, None], mask, 0).astype(np.uint8)


def stripe_rows(height: int) -> NDArray[np.bool_]:
    """(height,): whether a row lies in a stripe, not in a gap."""
    rows: NDArray[np.bool_] = (np.arange(height) + 0.5) / height % (STRIPE + GAP) < STRIPE
    return rows


STYLES: dict[str, Callable[[Mask], Mask]] = {"outline": outline, "stripes": stripes}
"""Name to what it makes of a mask."""


def styled(mask: Image.Image, style: str, strength: float = 1.0) -> Image.Image:
    """A mask of mode L in a style; "" returns it unchanged. With less strength what it leaves out is only faded."""
    if not style:
        return mask
    return Image.blend(mask, Image.fromarray(STYLES[style](np.asarray(mask))), strength)
