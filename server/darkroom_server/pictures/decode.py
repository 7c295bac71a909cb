"""Decoding of clients' images, by what they are for; runs in a worker process (see `uploads`).

Files are untrusted. Pillow's readers are called without Image.open, whose warning of large pictures has a process-wide
limit. Files with disproportionate cost in memory or time are refused before the reader sees them, oversized pictures
before their pixels are decoded. Colour profiles and XMP are ignored.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from darkroom_plugins.canvas import binary

DAMAGED = "cannot be decoded: the file is cut off, damaged or of a kind that is not supported"
TIFF_MAGIC = rb"II\*\0|MM\0\*"
READERS: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (rb"\x89PNG\r\n\x1a\n", PngImageFile),
    (rb"\xff\xd8\xff", JpegImageFile),
    (rb"RIFF....WEBP", WebPImageFile),
    (rb"BM", BmpImageFile),
    (TIFF_MAGIC, TiffImageFile),
    (rb"GIF8[79]a", GifImageFile),
)
MAX_JPEG_SCANS, MAX_JPEG_EXIF = 500, 64  # typical: some ten scans if progressive, one EXIF segment
MAX_TIFF_VALUES = 65_536  # per tag, for instance the offsets of all strips
MAX_TIFF_TILE = 1024  # pixels; or max_edge if that is larger: tiles may exceed their picture
TIFF_TILE_EDGES, TIFF_BYTE_TYPES, TIFF_SHORT, TIFF_XMP, TIFF_PRIVATE = (322, 323), (1, 2, 7), 3, 700, 0x8000
WHITES = {"I": (255, 65_535, 2**31 - 1), "F": (1.0, 255.0)}  # candidates for the white level, by Pillow's mode
_T = Image.Transpose
TURNS = {2: _T.FLIP_LEFT_RIGHT, 3: _T.ROTATE_180, 4: _T.FLIP_TOP_BOTTOM, 5: _T.TRANSPOSE, 6: _T.ROTATE_270}
TURNS |= {7: _T.TRANSVERSE, 8: _T.ROTATE_90}  # by EXIF orientation

# Pillow's warnings quote values of the file, and Python keeps every distinct text in its warning registry. So does its
# log, at length for each tag.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


class Limits(Protocol):
    """The limits of a picture: those of the server, or of a request to a worker."""

    @property
    def max_edge(self) -> int: ...

    @property
    def max_pixels(self) -> int: ...


class BadImage(ValueError):
    """An unusable image file; the message is one of ours, never Pillow's."""


@contextmanager
def _refusing() -> Iterator[None]:
    """Maps a reader's exceptions to BadImage; Pillow's own messages contain memory addresses."""
    try:
        yield
    except (BadImage, MemoryError):
        raise
    except Exception as error:
        raise BadImage(DAMAGED) from error


@_refusing()
def decode_image(data: bytes, limits: Limits) -> npt.NDArray[np.uint8]:
    """The first frame, EXIF orientation applied, composited over white: (h, w, 3) uint8 RGB, read-only.

    :raises BadImage: not an image, damaged, or too large
    """
    return np.asarray(_over("white", _decode(data, limits)).convert("RGB"))  # read-only, as it views bytes


@_refusing()
def decode_control_map(data: bytes, limits: Limits) -> npt.NDArray[np.uint8]:
    """As `decode_image`, but without its alpha, as diffusers reads control maps: (h, w, 3) uint8 RGB, read-only.

    :raises BadImage: not an image, damaged, or too large
    """
    return np.asarray(_decode(data, limits).convert("RGB"))


@_refusing()
def decode_mask(data: bytes, limits: Limits) -> npt.NDArray[np.uint8]:
    """The first frame, EXIF orientation applied, composited over black: (h, w) uint8, read-only; 255 where it is white,
    0 where it is black or transparent.

    :raises BadImage: not an image, damaged, or too large
    """
    return np.asarray(binary(_over("black", _decode(data, limits)).convert("L")))


@_refusing()
def decode_transparency(data: bytes, limits: Limits) -> npt.NDArray[np.uint8]:
    """The first frame, EXIF orientation applied: (h, w) uint8; 255 where it is transparent by half or more, else 0.

    :raises BadImage: not an image, damaged, or too large
    """
    alpha = np.asarray(_decode(data, limits).getchannel("A"))
    return np.where(alpha < 128, 255, 0).astype(np.uint8)


def _over(colour: str, straight: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", straight.size, colour), straight)


def _decode(data: bytes, limits: Limits) -> Image.Image:
    """The first frame, EXIF orientation applied, as RGBA with straight alpha."""
    image = _open(data, limits)
    width, height = image.size
    if max(width, height) > limits.max_edge:
        raise BadImage(f"must be at most {limits.max_edge} x {limits.max_edge} pixels, not {width} x {height}")
    if width * height > limits.max_pixels:
        raise BadImage(f"must have at most {limits.max_pixels} pixels, not {width} x {height}")
    image.load()
    turn = TURNS.get(_orientation(image.info.get("exif")))
    rgba = _eight_bits(image).convert("RGBA")
    return rgba if turn is None else rgba.transpose(turn)


def _open(data: bytes, limits: Limits) -> ImageFile.ImageFile:
    """The file's reader, with the header parsed and pixels not yet decoded."""
    reader = next((reader for magic, reader in READERS if re.match(magic, data, re.DOTALL)), None)
    if reader is None:
        raise BadImage("must be a PNG, JPEG, WebP, BMP, TIFF or GIF file" if data else "must not be empty")
    is_jpeg, is_tiff = reader is JpegImageFile, reader is TiffImageFile
    if (is_jpeg and _is_costly_jpeg(data)) or (is_tiff and _is_costly_tiff(data, limits)):
        raise BadImage(DAMAGED)
    try:
        image = reader(io.BytesIO(data))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # GIF, WebP: Pillow's limit
        raise BadImage(f"must be at most {limits.max_edge} x {limits.max_edge} pixels") from error
    for directory in ExifTags.IFD if is_tiff else ():  # the reader would parse each sub-IFD in full
        image.getexif().pop(directory, None)
    return image


def _is_costly_jpeg(data: bytes) -> bool:
    """Each scan passes over all pixels; each EXIF segment copies the earlier ones, which is quadratic."""
    return data.count(b"\xff\xda") > MAX_JPEG_SCANS or data.count(b"Exif\0\0") > MAX_JPEG_EXIF


def _is_costly_tiff(data: bytes, limits: Limits) -> bool:
    """The reader parses all values of a tag, such as strip offsets, and allocates a whole tile."""
    longest = max(MAX_TIFF_TILE, limits.max_edge)
    return any(
        (count > MAX_TIFF_VALUES and not (kind in TIFF_BYTE_TYPES and (tag >= TIFF_PRIVATE or tag == TIFF_XMP)))
        or (tag in TIFF_TILE_EDGES and value > longest)
        for tag, kind, count, value in _tiff_tags(data)
    )


def _tiff_tags(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(tag, type, count, value if a single number) of each entry in the first IFD."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"

    def number(start: int, size: int) -> int:
        return int.from_bytes(data[start : start + size], order)

    first = number(4, 4) + 2
    for start in range(first, first + 12 * number(first - 2, 2), 12):
        kind = number(start + 2, 2)
        yield number(start, 2), kind, number(start + 4, 4), number(start + 8, 2 if kind == TIFF_SHORT else 4)


def _orientation(exif: Any) -> int:
    """The EXIF orientation; 1, upright, without valid EXIF data. The TIFF reader applies the orientation itself."""
    tiff = exif.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0") if isinstance(exif, bytes) else b""
    tags = _tiff_tags(tiff) if re.match(TIFF_MAGIC, tiff) else ()
    return next((value for tag, *_, value in tags if tag == ExifTags.Base.Orientation), 1)


def _eight_bits(image: Image.Image) -> Image.Image:
    """A single channel of more than 8 bits to L, or to LA with a transparent value; other images unchanged.

    16 bits keep their upper 8, as in the readers for colours. 32-bit integers and floats have no fixed white level: it
    is the smallest of WHITES that no value exceeds, or the last. Values outside [black, white] are clipped.
    """
    if image.mode in WHITES:
        wide, whites = np.nan_to_num(np.asarray(image, np.float64)), WHITES[image.mode]
        white = next((each for each in whites if wide.max() <= each), whites[-1])
        return Image.fromarray(np.rint(wide.clip(0, white) * (255 / white)).astype(np.uint8))
    if not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    if not isinstance(transparent := image.info.get("transparency"), int):
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))))
