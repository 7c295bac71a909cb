"""The canvas: pictures fitted to the working size, and what is painted put back into the frame."""

from typing import Any, get_args

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image

from darkroom_plugins.canvas import Canvas, fit
from darkroom_plugins.errors import InvalidRequest
from darkroom_plugins.request import ResizeMode
from tests.prompting import a_request

FACTOR = 8  # a model's size_factor
SIZES = st.tuples(st.integers(1, 48), st.integers(1, 48))  # width, height
WORKING = st.tuples(*[st.integers(1, 5).map(lambda each: FACTOR * each)] * 2)
MODES = st.sampled_from(get_args(ResizeMode))
BLURS = st.integers(0, 6)
SEEDS = st.integers(0, 99)


def noise(size: tuple[int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)


def a_canvas(picture: np.ndarray, size: tuple[int, int], mask: np.ndarray | None = None, **options: Any) -> Canvas:
    """Of an edit; what is not a field of Canvas.of is one of the request."""
    given = {name: options.pop(name) for name in ("padding", "mask_blur") if name in options}
    request = a_request(image=picture, width=size[0], height=size[1], **options)
    return Canvas.of(request, mask=None if mask is None else Image.fromarray(mask), **given)


def rounded_up(size: tuple[int, int]) -> tuple[int, int]:
    """The working size of an edit of the picture's own size."""
    width, height = (-(-each // FACTOR) * FACTOR for each in size)
    return width, height


def box_size(canvas: Canvas) -> tuple[int, int]:
    left, top, right, bottom = canvas.box
    return right - left, bottom - top


def too_narrow(size: tuple[int, int], fitted: tuple[int, int]) -> bool:
    """Whether a picture has less than one pixel across, scaled to lie within another size."""
    (width, height), (wide, high) = size, fitted
    return size != fitted and (width * high < height or height * wide < width)


@st.composite
def masks(draw: st.DrawFn, size: tuple[int, int]) -> np.ndarray:
    """Black with one or two white rectangles."""
    mask = np.zeros(size[::-1], np.uint8)
    for _ in range(draw(st.integers(1, 2))):
        spans = [sorted((draw(st.integers(0, edge - 1)), draw(st.integers(0, edge - 1)))) for edge in size]
        (left, right), (top, bottom) = spans
        mask[top : bottom + 1, left : right + 1] = 255
    return mask


def reach(mask: np.ndarray, blur: int) -> np.ndarray:
    """Where a Gaussian blur of this radius may show: it is made of three boxes, each up to so many pixels wide."""
    found = mask > 0
    for axis in (0, 1):
        width = 3 * blur
        padded = np.pad(found, [(width, width) if axis == each else (0, 0) for each in (0, 1)])
        found = np.lib.stride_tricks.sliding_window_view(padded, 2 * width + 1, axis=axis).any(axis=-1)
    return found


# --------------------------------------------------------------------------------------------------------------- fit


@example((40, 1), (8, 8), "pad", "RGB")
@given(SIZES, SIZES, MODES, st.sampled_from(["RGB", "L"]))
def test_a_fitted_picture_has_the_size_and_its_own_mode(
    size: tuple[int, int], fitted: tuple[int, int], mode: ResizeMode, colours: str
) -> None:
    picture = Image.new(colours, size)
    if mode == "pad" and too_narrow(size, fitted):
        with pytest.raises(InvalidRequest) as caught:
            fit(picture, fitted, mode, "controls[0].image")
        assert [each.field for each in caught.value.violations] == ["controls[0].image"]
    else:
        result = fit(picture, fitted, mode)
        assert (result.size, result.mode) == (fitted, colours)


@given(SIZES, MODES, SEEDS)
def test_a_picture_of_the_right_size_is_not_resampled(size: tuple[int, int], mode: ResizeMode, seed: int) -> None:
    picture = noise(size, seed)
    assert np.array_equal(fit(Image.fromarray(picture), size, mode), picture)


@given(SIZES, SIZES, st.sampled_from(["crop", "stretch"]), st.tuples(*[st.integers(0, 255)] * 3))
def test_one_colour_stays_one_colour(
    size: tuple[int, int], fitted: tuple[int, int], mode: ResizeMode, colour: tuple[int, int, int]
) -> None:
    assert fit(Image.new("RGB", size, colour), fitted, mode).getcolors() == [(fitted[0] * fitted[1], colour)]


# ------------------------------------------------------------------------------------------------- the whole picture


@given(SIZES, WORKING, MODES, SEEDS)
def test_a_sized_edit_has_the_size_asked_for(
    frame: tuple[int, int], size: tuple[int, int], mode: ResizeMode, seed: int
) -> None:
    assume(mode != "pad" or not too_narrow(frame, size))
    canvas = a_canvas(noise(frame, seed), size, resize_mode=mode)
    assert canvas.frame_size == size
    assert canvas.image is not None
    assert canvas.image.shape == (size[1], size[0], 3)
    assert canvas.restore(canvas.image).shape == canvas.image.shape
    assert np.array_equal(canvas.restore(canvas.image), canvas.frame)


@given(SIZES, SEEDS, MODES)
def test_a_picture_of_its_own_size_comes_back_equal(frame: tuple[int, int], seed: int, mode: ResizeMode) -> None:
    picture, size = noise(frame, seed), rounded_up(frame)
    canvas = a_canvas(picture, size, sized=False, resize_mode=mode)
    assert canvas.image is not None
    assert canvas.image.shape == (size[1], size[0], 3)
    assert np.array_equal(canvas.restore(canvas.image), picture)


@given(SIZES, SEEDS)
def test_edge_pixels_go_on_beyond_the_frame(frame: tuple[int, int], seed: int) -> None:
    picture, size = noise(frame, seed), rounded_up(frame)
    image = a_canvas(picture, size, sized=False).image
    below, beside = (np.minimum(np.arange(big), small - 1) for big, small in zip(size[::-1], frame[::-1], strict=True))
    assert np.array_equal(image, picture[below][:, beside])


@given(SIZES, WORKING, SIZES, MODES, st.booleans(), SEEDS)
def test_another_picture_of_the_view_is_placed_at_the_working_size(
    frame: tuple[int, int], size: tuple[int, int], other: tuple[int, int], mode: ResizeMode, sized: bool, seed: int
) -> None:
    size = size if sized else rounded_up(frame)
    assume(mode != "pad" or not (too_narrow(frame, size) or too_narrow(other, size if sized else frame)))
    picture = noise(frame, seed)
    canvas = a_canvas(picture, size, sized=sized, resize_mode=mode)
    assert canvas.place(noise(other, seed), "image").shape == (size[1], size[0], 3)
    assert np.array_equal(canvas.place(picture, "image"), canvas.image)


@given(WORKING)
def test_a_request_without_a_picture_has_an_empty_canvas(size: tuple[int, int]) -> None:
    canvas = Canvas.of(a_request(width=size[0], height=size[1]))
    assert (canvas.frame_size, canvas.image, canvas.mask) == (size, None, None)
    assert np.array_equal(canvas.restore(painted := noise(size, 0)), painted)


# -------------------------------------------------------------------------------------------------------- under a mask


def kept_and_painted(canvas: Canvas, picture: np.ndarray, mask: np.ndarray, blur: int, seed: int) -> None:
    """Paint something else, and look where it shows. `mask` is where the picture is to be repainted."""
    painted = noise(canvas.size, seed + 100)
    restored = canvas.restore(painted)
    assert restored.shape == picture.shape
    kept = ~reach(mask, blur)
    assert np.array_equal(restored[kept], picture[kept])
    if box_size(canvas) == canvas.size:
        (left, top), (height, width) = canvas.box[:2], mask.shape
        shown = painted[: height - top, : width - left]
        whole = np.pad(shown, [(top, height - top - len(shown)), (left, width - left - len(shown[0])), (0, 0)])
        assert np.array_equal(restored[mask == 255], whole[mask == 255])


@given(SIZES, BLURS, SEEDS, st.data())
def test_what_is_outside_the_mask_stays(frame: tuple[int, int], blur: int, seed: int, data: st.DataObject) -> None:
    picture, mask = noise(frame, seed), data.draw(masks(frame))
    canvas = a_canvas(picture, rounded_up(frame), mask, sized=False, mask_blur=blur)
    assert canvas.mask is not None
    assert np.array_equal(canvas.mask[: frame[1], : frame[0]], mask == 255)
    kept_and_painted(canvas, picture, mask, blur, seed)


@given(SIZES, WORKING, MODES, SEEDS, st.data())
def test_what_is_outside_a_fitted_mask_stays(
    frame: tuple[int, int], size: tuple[int, int], mode: ResizeMode, seed: int, data: st.DataObject
) -> None:
    assume(mode != "pad" or not too_narrow(frame, size))
    picture, mask = Image.fromarray(noise(frame, seed)), Image.fromarray(data.draw(masks(frame)))
    canvas = a_canvas(np.asarray(picture), size, np.asarray(mask), resize_mode=mode, mask_blur=0)
    fitted, fitted_mask = (np.asarray(fit(each, size, mode)) for each in (picture, mask))
    assert np.array_equal(canvas.mask, fitted_mask >= 128)
    kept_and_painted(canvas, fitted, fitted_mask, 0, seed)


@given(SIZES, BLURS, SEEDS, st.data())
def test_a_picture_painted_with_itself_comes_back(
    frame: tuple[int, int], blur: int, seed: int, data: st.DataObject
) -> None:
    picture = noise(frame, seed)
    canvas = a_canvas(picture, rounded_up(frame), data.draw(masks(frame)), sized=False, mask_blur=blur)
    assert canvas.image is not None
    difference = np.abs(canvas.restore(canvas.image).astype(int) - picture)
    assert difference.max() <= 1  # rounding, where the mask is soft
    assert difference[np.asarray(canvas.overlay) % 255 == 0].max(initial=0) == 0


# ---------------------------------------------------------------------------------------------- a region of the picture


def filled(picture: np.ndarray, region: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """A region as diffusers' inpainting pipeline scales it."""
    image = Image.fromarray(picture).crop(region)
    if image.size != size:
        image = VaeImageProcessor().resize(image, size[1], size[0], resize_mode="fill")
    return np.asarray(image.convert("RGB" if picture.ndim == 3 else "L"))


@given(SIZES, WORKING, st.integers(0, 16), BLURS, SEEDS, st.data())
def test_a_region_is_that_of_diffusers_and_comes_back_in_its_frame(
    frame: tuple[int, int], size: tuple[int, int], padding: int, blur: int, seed: int, data: st.DataObject
) -> None:
    picture, mask = noise(frame, seed), data.draw(masks(frame))
    left, top, right, bottom = region = VaeImageProcessor.get_crop_region(Image.fromarray(mask), *size, pad=padding)
    options: dict[str, Any] = {"sized": False, "padding": padding, "mask_blur": blur}
    if too_narrow((right - left, bottom - top), size):
        with pytest.raises(InvalidRequest):
            a_canvas(picture, size, mask, **options)
        return
    canvas = a_canvas(picture, size, mask, **options)
    assert canvas.box == region
    assert canvas.image is not None
    assert canvas.mask is not None
    assert np.array_equal(canvas.image, filled(picture, region, size))
    assert np.array_equal(canvas.mask, filled(mask, region, size) >= 128)
    kept_and_painted(canvas, picture, mask, blur, seed)


def a_region(size: tuple[int, int], left: int, top: int, padding: int, blur: int) -> tuple[Canvas, np.ndarray]:
    """A canvas whose region has the working size and begins here, and its picture."""
    picture = noise((left + size[0] + 20, top + size[1] + 20), 0)
    mask = np.zeros(picture.shape[:2], np.uint8)
    mask[top + padding : top + size[1] - padding, left + padding : left + size[0] - padding] = 255
    canvas = a_canvas(picture, size, mask, sized=False, padding=padding, mask_blur=blur)
    assert canvas.box == (left, top, left + size[0], top + size[1])
    return canvas, picture


@given(WORKING, st.integers(0, 20), st.integers(0, 20), st.integers(0, 3), BLURS)
def test_a_region_that_is_not_resampled_comes_back_equal(
    size: tuple[int, int], left: int, top: int, padding: int, blur: int
) -> None:
    canvas, picture = a_region(size, left, top, padding, blur)
    assert canvas.image is not None
    difference = np.abs(canvas.restore(canvas.image).astype(int) - picture)
    assert difference.max() <= 1  # rounding, where the mask is soft
    assert difference[np.asarray(canvas.overlay) % 255 == 0].max(initial=0) == 0


def test_a_region_at_the_top_left_comes_back_in_its_frame() -> None:
    canvas, picture = a_region((32, 32), 0, 0, 0, 0)
    assert canvas.image is not None
    assert canvas.restore(canvas.image).shape == picture.shape
