"""Decodes the pictures that clients send; runs in a pool thread.

The files are not trusted. Pillow's readers are called without Image.open, which warns of large pictures by a limit that
belongs to the whole process. What would cost a reader memory or time out of all proportion is refused before it sees
the file, and a picture that is too large before its pixels are decoded. Colour profiles and XMP are ignored.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from darkroom_server.config.settings import Limits

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
MAX_JPEG_SCANS, MAX_JPEG_EXIF = 500, 64  # progressive files have some ten scans, photographs one EXIF segment
MAX_TIFF_VALUES = 65_536  # numbers in one tag, for instance the offsets of all strips
MAX_TIFF_TILE = 1024  # pixels: tiles may be larger than their picture, up to this or its limit
TIFF_TILE_EDGES, TIFF_BYTE_TYPES, TIFF_SHORT, TIFF_XMP, TIFF_PRIVATE = (322, 323), (1, 2, 7), 3, 700, 0x8000
WHITES = {"I": (255, 65_535, 2**31 - 1), "F": (1.0, 255.0)}  # what white may be, by Pillow's mode
_T = Image.Transpose
TURNS = {2: _T.FLIP_LEFT_RIGHT, 3: _T.ROTATE_180, 4: _T.FLIP_TOP_BOTTOM, 5: _T.TRANSPOSE, 6: _T.ROTATE_270}
TURNS |= {7: _T.TRANSVERSE, 8: _T.ROTATE_90}  # by EXIF orientation

# Pillow's warnings quote numbers of the file, and Python remembers every text that it has shown.
warnings.filterwarnings("ignore", module=r"PIL\.")


class BadImage(ValueError):
    """What is wrong with the bytes of an image; its text is a fixed sentence of ours."""


@contextmanager
def _refusing() -> Iterator[None]:
    """Turns whatever a reader raises into BadImage; Pillow's own texts hold addresses."""
    try:
        yield
    except BadImage:
        raise
    except Exception as error:
        raise BadImage(DAMAGED) from error


@_refusing()
def decode_image(data: bytes, limits: Limits) -> npt.NDArray[np.uint8]:
    """The picture's first frame, upright, over white: (h, w, 3) RGB, read-only.

    :raises BadImage: it is not a picture, is damaged, or is too large
    """
    straight = _decode(data, limits)
    white = Image.new("RGBA", straight.size, "white")
    return np.asarray(Image.alpha_composite(white, straight).convert("RGB"))  # read-only, as its bytes are


@_refusing()
def decode_mask(data: bytes, limits: Limits) -> npt.NDArray[np.uint8]:
    """The grey values of the picture's first frame, upright, whatever its alpha: (h, w), read-only.

    :raises BadImage: it is not a picture, is damaged, or is too large
    """
    return np.asarray(_decode(data, limits).convert("L"))


def _decode(data: bytes, limits: Limits) -> Image.Image:
    """The picture, upright, as RGBA; its colours are not multiplied by alpha."""
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
    """The reader of the file, which has read all up to the pixels."""
    reader = next((reader for magic, reader in READERS if re.match(magic, data, re.DOTALL)), None)
    if reader is None:
        raise BadImage("must be a PNG, JPEG, WebP, BMP, TIFF or GIF file" if data else "must not be empty")
    is_jpeg, is_tiff = reader is JpegImageFile, reader is TiffImageFile
    if (is_jpeg and _is_costly_jpeg(data)) or (is_tiff and _is_costly_tiff(data, limits)):
        raise BadImage(DAMAGED)
    try:
        image = reader(io.BytesIO(data))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # GIF and WebP go by Pillow's limit
        raise BadImage(f"must be at most {limits.max_edge} x {limits.max_edge} pixels") from error
    for directory in ExifTags.IFD if is_tiff else ():  # the reader would list all values of each
        image.getexif().pop(directory, None)
    return image


def _is_costly_jpeg(data: bytes) -> bool:
    """Each scan goes over all pixels, and each EXIF segment copies those before it."""
    return data.count(b"\xff\xda") > MAX_JPEG_SCANS or data.count(b"Exif\0\0") > MAX_JPEG_EXIF


def _is_costly_tiff(data: bytes, limits: Limits) -> bool:
    """The reader lists the values of some tags, such as all strips, and makes room for a whole tile."""
    longest = max(MAX_TIFF_TILE, limits.max_edge)
    return any(
        (count > MAX_TIFF_VALUES and not (kind in TIFF_BYTE_TYPES and (tag >= TIFF_PRIVATE or tag == TIFF_XMP)))
        or (tag in TIFF_TILE_EDGES and value > longest)
        for tag, kind, count, value in _tiff_tags(data)
    )


def _tiff_tags(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Tag, type, count of values, and the value if it is one number, of each entry in the first directory."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"

    def number(start: int, size: int) -> int:
        return int.from_bytes(data[start : start + size], order)

    first = number(4, 4) + 2
    for start in range(first, first + 12 * number(first - 2, 2), 12):
        kind = number(start + 2, 2)
        yield number(start, 2), kind, number(start + 4, 4), number(start + 8, 2 if kind == TIFF_SHORT else 4)


def _orientation(exif: Any) -> int:
    """1, upright, for anything but sound EXIF data. The TIFF reader turns its pictures itself."""
    tiff = exif.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0") if isinstance(exif, bytes) else b""
    tags = _tiff_tags(tiff) if re.match(TIFF_MAGIC, tiff) else ()
    return next((value for tag, *_, value in tags if tag == ExifTags.Base.Orientation), 1)


def _eight_bits(image: Image.Image) -> Image.Image:
    """A channel of more than 8 bits as L, or as LA where one of its values is transparent; others as they are.

    Of 16 bits it keeps the upper 8, as the readers do for colours. Wider numbers have no fixed white: it is the least
    of WHITES that no value exceeds, or the last. What lies outside of black and white is clipped.
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
