"""Fits the pictures that clients send to the size at which a model works, and what it makes back again."""

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
        VaeImageProcessor,  # which takes seconds, and tasks without pictures do without
    )

    return VaeImageProcessor()


_MODES = {"crop": "crop", "pad": "fill", "stretch": "default"}  # as diffusers calls them


def fit(picture: Image.Image, size: tuple[int, int], mode: ResizeMode, path: str = "image") -> Image.Image:
    """The picture at this width and height, as diffusers' VaeImageProcessor.resize does.

    :raises InvalidRequest: it is so narrow that nothing would be left of it
    """
    if picture.size == size:
        return picture
    try:
        fitted: Image.Image = _processor().resize(picture, size[1], size[0], resize_mode=_MODES[mode])
    except ValueError as error:
        problem = f"is too narrow to be fitted to {size[0]} x {size[1]} pixels in this mode"
        raise InvalidRequest([Violation(path, problem)]) from error
    return fitted.convert(picture.mode)


@dataclass(frozen=True, slots=True, eq=False)
class Canvas:
    """The pictures that a job works from.

    The frame is the picture that comes back; its `box`, brought to `size`, is what the model works on. The box may
    reach beyond the frame, whose edge pixels then go on. Sizes are (width, height) in pixels.
    """

    size: tuple[int, int]
    frame_size: tuple[int, int]
    box: Box
    resize_mode: ResizeMode = "crop"
    frame: Image.Image | None = None  # RGB; None where there is no picture to begin with
    image: Pixels | None = None  # (height, width, 3) uint8: the box of the frame
    mask: Pixels | None = None  # (height, width) bool: what is repainted of it
    overlay: Image.Image | None = None  # L, of the frame's size: how much of what was painted shows; None: all

    @classmethod
    def of(
        cls,
        request: Request,
        frame: Image.Image | None = None,
        mask: Image.Image | None = None,
        padding: int | None = None,
        mask_blur: int | None = None,
    ) -> Canvas:
        """The canvas of a request, whose image is the frame unless another is given.

        With `mask` (L, of the frame's size) and `padding`, only the mask's box is worked on, widened by so many pixels
        on each side and to the proportions of the working size. With `mask_blur`, a radius in pixels, the frame's own
        pixels are put back where the mask, blurred outwards, is 0.
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
                mask = fit(mask, size, request.resize_mode) if mask else None
        bare = cls(size, frame.size, box, request.resize_mode)
        return cls(
            *(size, frame.size, box, request.resize_mode, frame),
            image=bare._worked_on(frame),
            mask=bare._worked_on(mask) >= 128 if mask else None,
            overlay=_overlay(mask, box, mask_blur) if mask and mask_blur is not None else None,
        )

    def place(self, picture: Pixels, path: str) -> Pixels:
        """Another picture of the same view, (h, w, 3) uint8 of any size, as the model works on it."""
        return self._worked_on(fit(Image.fromarray(picture), self.frame_size, self.resize_mode, path))

    def _worked_on(self, picture: Image.Image) -> Pixels:
        """The box of a picture of the frame's size."""
        (width, height), (_, _, right, bottom) = self.frame_size, self.box
        if right > width or bottom > height:
            below, beside = max(0, bottom - height), max(0, right - width)
            edges = [(0, below), (0, beside), (0, 0)][: np.asarray(picture).ndim]
            picture = Image.fromarray(np.pad(np.asarray(picture), edges, mode="edge"))
        return np.asarray(fit(picture.crop(self.box), self.size, "pad"))

    def restore(self, pixels: Pixels) -> Pixels:
        """The frame with what was painted in it: (height, width, 3) uint8 of `size` to `frame_size`."""
        width, height = self.frame_size
        covers = self.box == (0, 0, *self.size)
        painted = pixels[:height, :width] if covers else pixels
        if self.overlay is None:
            return painted
        box = None if covers else self.box
        return np.asarray(_processor().apply_overlay(self.overlay, self.frame, Image.fromarray(painted), box))


def _overlay(mask: Image.Image, box: Box, blur: int) -> Image.Image:
    """The mask, softened outwards, and nothing beyond the box."""
    soft = ImageChops.lighter(mask, mask.filter(ImageFilter.GaussianBlur(blur)))
    inside = Image.new("L", mask.size)
    inside.paste(soft.crop(box), box[:2])
    return inside
