"""Files of pictures, as Pillow writes them or byte by byte."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from darkroom_server.config.settings import Limits
from darkroom_server.pictures.decode import BadImage, decode_image, decode_mask

LIMITS = Limits()
NOISE = np.random.default_rng(0).integers(0, 256, (13, 19, 4), np.uint8)
LOSSLESS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "webp": ("WEBP", {"lossless": True, "exact": True}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "tiff lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "tiff packbits": ("TIFF", {"compression": "packbits"}),
}


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def picture(mode: str = "RGB") -> Image.Image:
    """Noise, in a mode of 8 bits a channel or less."""
    return Image.fromarray(NOISE if mode.endswith("A") else NOISE[..., :3]).convert(mode)


def png(size: tuple[int, int], bits: int, kind: int, rows: bytes, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def problem(data: bytes, limits: Limits = LIMITS) -> str:
    """What both functions say of the file."""
    with pytest.raises(BadImage) as image:
        decode_image(data, limits)
    with pytest.raises(BadImage) as mask:
        decode_mask(data, limits)
    assert str(image.value) == str(mask.value)
    return str(image.value)
