"""Encoding of pictures, previews and control maps; runs in the encoder pool."""

from __future__ import annotations

import io
import json
from typing import Any

from PIL import Image, PngImagePlugin

from darkroom_plugins.request import ImageFormat, OutputOptions, PreviewOptions
from darkroom_plugins.sample import Picture

MIN_PREVIEW_EDGE = 64  # pixels; smaller previews are upscaled
PREVIEW_QUALITY, MAP_QUALITY = 90, 95
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
MAX_COMMENT = 60_000  # bytes, even (UTF-16); EXIF is limited to 64 KiB in all
MEDIA_TYPES: dict[ImageFormat, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


def encode_picture(picture: Picture, options: OutputOptions) -> bytes:
    """The encoded file. With `embed_metadata`, PNG has the text chunks `parameters`, those of plugins, and `darkroom`
    (the metadata as JSON); JPEG and WebP have `parameters` as EXIF UserComment."""
    image = Image.fromarray(picture.pixels)
    extra: dict[str, Any] = {}
    if options.embed_metadata and options.format == "png":
        extra["pnginfo"] = _text_chunks(picture)
    elif options.embed_metadata and "parameters" in picture.text:
        extra["exif"] = _user_comment(picture.text["parameters"])
    return _file(image, options.format, options.quality, **extra)


def _text_chunks(picture: Picture) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    for keyword, text in picture.text.items():
        chunks.add_itxt(keyword, text)
    chunks.add_itxt("darkroom", json.dumps(picture.metadata, ensure_ascii=False, allow_nan=False))
    return chunks


def _user_comment(text: str) -> bytes:
    exif = Image.Exif()
    encoded = text.encode("utf-16-be", "replace")[:MAX_COMMENT]
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"UNICODE\0" + encoded
    return exif.tobytes()


def encode_preview(pixels: Any, options: PreviewOptions) -> tuple[bytes, tuple[int, int]]:
    """The encoded preview of (h, w, 3) uint8, and its (width, height): the longer edge is scaled to between 64
    pixels and `max_edge`."""
    image = Image.fromarray(pixels)
    longer = max(image.size)
    edge = min(max(longer, MIN_PREVIEW_EDGE), options.max_edge)
    if edge != longer:
        width, height = (max(1, round(size * edge / longer)) for size in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return _file(image, options.format, PREVIEW_QUALITY), image.size


def encode_map(pixels: Any, format: ImageFormat) -> bytes:
    """The encoded control map of (h, w, 3) uint8."""
    return _file(Image.fromarray(pixels), format, None if format == "png" else MAP_QUALITY)


def _file(image: Image.Image, format: ImageFormat, quality: int | None, **extra: Any) -> bytes:
    if format == "png":
        extra["compress_level"] = 4  # much faster than the default 6, and hardly larger files
    elif quality is not None:
        extra["quality"] = quality
    file = io.BytesIO()
    image.save(file, format.upper(), **extra)
    return file.getvalue()
