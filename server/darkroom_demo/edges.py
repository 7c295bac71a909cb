"""Canny edge maps for ControlNets, and the F1 score between two of them."""

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Edges = NDArray[np.bool_]

LOW, HIGH = 100, 200
"""Canny's thresholds, as in the public Canny ControlNets' documentation."""


def canny(picture: Image.Image) -> Edges:
    """Canny 1986, as cv2.Canny on RGB: (H, W), True on edges, which are a pixel wide."""
    edges: Edges = cv2.Canny(np.asarray(picture.convert("RGB")), LOW, HIGH) > 0
    return edges


def edge_picture(edges: Edges) -> Image.Image:
    """White edges on black, RGB: the picture that diffusers' ControlNet pipelines take."""
    return Image.fromarray(edges.astype(np.uint8) * 255).convert("RGB")


def edge_f1(found: Edges, given: Edges, tolerance: int = 1) -> float:
    """Harmonic mean of precision and recall, 0 to 1; an edge matches one within `tolerance` pixels (3 × 3)."""
    square = np.ones((2 * tolerance + 1,) * 2, np.uint8)
    precision = _share_within(found, cv2.dilate(given.astype(np.uint8), square) > 0)
    recall = _share_within(given, cv2.dilate(found.astype(np.uint8), square) > 0)
    return 2 * precision * recall / max(precision + recall, 1e-9)


def _share_within(edges: Edges, near: Edges) -> float:
    return float((edges & near).sum() / max(int(edges.sum()), 1))
