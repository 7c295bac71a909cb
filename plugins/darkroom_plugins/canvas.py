"""Fits input pictures to the working size, and results back into their frame."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from darkroom_plugins.errors import InvalidRequest, Violation

if TYPE_CHECKING:
    from darkroom_plugins.request import Pixels, Request, ResizeMode

Box: TypeAlias = tuple[int, int, int, int]  # left, top, right, bottom


@functools.cache
def _processor() -> Any:
    from diffusers.image_processor import (
        VaeImageProcessor,  # takes seconds to import; not needed without pictures
    )

    return VaeImageProcessor()


MASKED = 128  # grey of a mask from which on it is repainted, as in diffusers' pipelines
_MODES = {"crop": "crop", "pad": "fill", "stretch": "default"}  # diffusers' names


def fit(picture: Image.Image, size: tuple[int, int], mode: ResizeMode, path: str = "image") -> Image.Image:
    """The picture at this width and height, as diffusers' VaeImageProcessor.resize does.

    :raises InvalidRequest: it is so narrow that the result would have no pixels
    """
    if picture.size == size:
        return picture
    try:
        fitted: Image.Image = _processor().resize(picture, size[1], size[0], resize_mode=_MODES[mode])
    except ValueError as error:
        problem = f"is too narrow to be fitted to {size[0]} x {size[1]} pixels in this mode"
        raise InvalidRequest([Violation(path, problem)]) from error
    return fitted.convert(picture.mode)


def binary(mask: Image.Image) -> Image.Image:
    """A grey mask, L, as 255 where it is repainted and 0 where it is kept."""
    return mask.point([0] * MASKED + [255] * (256 - MASKED))


@dataclass(frozen=True, slots=True, eq=False)
class Canvas:
    """The input pictures of a job.

    The frame is the picture that comes back; its `box`, resized to `size`, is the model's input. Beyond the frame the
    box is padded with edge pixels. Sizes are (width, height) in pixels.
    """

    size: tuple[int, int]
    frame_size: tuple[int, int]
    box: Box
    resize_mode: ResizeMode = "crop"
    frame: Image.Image | None = None  # RGB; None without an input picture
    image: Pixels | None = None  # (height, width, 3) uint8: the box, resized
    mask: Pixels | None = None  # (height, width) bool: True is repainted
    overlay: Image.Image | None = None  # L, of the frame's size: opacity of the result; None: opaque

    @classmethod
    def of(
        cls,
        request: Request,
        frame: Image.Image | None = None,
        mask: Image.Image | None = None,
        padding: int | None = None,
        mask_blur: int | None = None,
    ) -> Canvas:
        """The canvas of a request; `frame` defaults to its image.

        With `mask` (L, of the frame's size, 0 or 255) and `padding` in pixels, the box is the mask's, padded on each
        side and widened to the aspect ratio of the working size. With `mask_blur`, a radius in pixels, the frame's
        pixels are restored where the mask, blurred outwards, is 0.
        """
        size = (request.width, request.height)
        whole = (0, 0, *size)
        if frame is None and request.image is not None:
            frame = Image.fromarray(request.image)
        if frame is None:
            return cls(size, size, whole)
        if padding is not None and mask is not None:
            box = _processor().get_crop_region(mask, *size, pad=padding)
        else:
            box = whole
            if request.sized:
                frame = fit(frame, size, request.resize_mode)
                mask = binary(fit(mask, size, request.resize_mode)) if mask else None
        empty = cls(size, frame.size, box, request.resize_mode)
        return cls(
            *(size, frame.size, box, request.resize_mode, frame),
            image=empty._box_of(frame),
            mask=empty._box_of(mask) >= MASKED if mask else None,
            overlay=_overlay(mask, box, mask_blur) if mask and mask_blur is not None else None,
        )

    def place(self, picture: Pixels, path: str) -> Pixels:
        """Another picture of the same view, (h, w, 3) uint8 of any size, cropped and resized like the frame."""
        return self._box_of(fit(Image.fromarray(picture), self.frame_size, self.resize_mode, path))

    def _box_of(self, picture: Image.Image) -> Pixels:
        """The box of a picture of the frame's size, resized to `size`."""
        (width, height), (_, _, right, bottom) = self.frame_size, self.box
        if right > width or bottom > height:
            below, beside = max(0, bottom - height), max(0, right - width)
            edges = [(0, below), (0, beside), (0, 0)][: np.asarray(picture).ndim]
            picture = Image.fromarray(np.pad(np.asarray(picture), edges, mode="edge"))
        return np.asarray(fit(picture.crop(self.box), self.size, "pad"))

    def restore(self, pixels: Pixels) -> Pixels:
        """The result put into the frame: (height, width, 3) uint8 of `size` to `frame_size`."""
        width, height = self.frame_size
        covers = self.box == (0, 0, *self.size) and width <= self.size[0] and height <= self.size[1]
        painted = pixels[:height, :width] if covers else pixels
        if self.overlay is None:
            return painted
        box = None if covers else self.box
        return np.asarray(_processor().apply_overlay(self.overlay, self.frame, Image.fromarray(painted), box))


def _overlay(mask: Image.Image, box: Box, blur: int) -> Image.Image:
    """The mask, blurred outwards, 0 beyond the box."""
    soft = ImageChops.lighter(mask, mask.filter(ImageFilter.GaussianBlur(blur)))
    inside = Image.new("L", mask.size)
    inside.paste(soft.crop(box), box[:2])
    return inside
