"""Files of pictures, as Pillow writes them or byte by byte."""

import io
import random
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


FILES = {
    "png": encoded(picture("RGBA"), "PNG"),
    "png of 16 bits": encoded(Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257), "PNG"),
    "palette png": encoded(picture("P"), "PNG", transparency=b"\0\x80"),
    "jpeg": encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"),
    "progressive jpeg": encoded(picture("CMYK"), "JPEG", progressive=True),
    "webp": encoded(picture(), "WEBP"),
    "lossless webp": encoded(picture("RGBA"), "WEBP", lossless=True),
    "animated webp": encoded(picture(), "WEBP", save_all=True, append_images=[picture().rotate(90)]),
    "bmp": encoded(picture(), "BMP"),
    "palette bmp": encoded(picture("P"), "BMP"),
    "tiff": encoded(picture("RGBA"), "TIFF"),
    "tiff lzw": encoded(picture("LAB"), "TIFF", compression="tiff_lzw"),
    "tiff jpeg": encoded(picture(), "TIFF", compression="jpeg"),
    "float tiff": encoded(Image.fromarray(NOISE[..., 0].astype(np.float32)), "TIFF"),
    "gif": encoded(picture("P"), "GIF", transparency=3),
}


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, mostly in the header, or a piece cut out or doubled."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(rng.choice((len(changed), min(len(changed), 200))))
        changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256), changed[at] ^ 1 << rng.randrange(8)))
    start, length = rng.randrange(len(changed)), rng.randrange(40)
    piece = bytes(changed[start : start + length])
    return bytes(changed) if rng.random() < 0.7 else bytes(changed).replace(piece, piece * rng.choice((0, 2)), 1)
