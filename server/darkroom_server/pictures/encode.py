"""Encoding of pictures, previews and control maps; runs in the encoder pool."""

from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from PIL import Image, PngImagePlugin

from darkroom_plugins.request import ImageFormat, OutputOptions, PreviewOptions

if TYPE_CHECKING:
    from darkroom_plugins.sample import Picture

MIN_PREVIEW_EDGE = 64  # pixels; smaller previews are upscaled
PREVIEW_QUALITY, MAP_QUALITY = 90, 95
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
# JPEG's segments have up to 64 KiB, EXIF one and XMP one. WebP's chunks have no such limit.
MAX_COMMENT = 60_000  # bytes, even (UTF-16)
MAX_XMP = 65_000  # bytes
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:darkroom="urn:darkroom:v1"><darkroom:recipe>{}</darkroom:recipe>'
    "</rdf:Description></rdf:RDF></x:xmpmeta>"
)
NOT_IN_XML = re.compile(r"[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
MEDIA_TYPES: dict[ImageFormat, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


def encode_picture(picture: Picture, options: OutputOptions) -> tuple[bytes, tuple[str, ...]]:
    """The encoded file, and warnings about what did not fit into it.

    With `embed_metadata`, PNG has the text chunks `parameters`, those of plugins, and `darkroom` (the metadata as
    JSON); JPEG and WebP have `parameters` as EXIF UserComment and the JSON as `darkroom:recipe` in XMP.
    """
    extra: dict[str, Any] = {}
    warnings: list[str] = []
    if options.embed_metadata:
        recipe = json.dumps(picture.metadata, ensure_ascii=False, allow_nan=False)
        if options.format == "png":
            extra["pnginfo"] = _text_chunks(picture, recipe)
        else:
            comment, xmp = picture.text.get("parameters", "").encode("utf-16-be", "replace"), _xmp(recipe)
            if options.format == "jpeg":
                comment, xmp, warnings = _fitted(comment, xmp)
            extra |= {"exif": _user_comment(comment)} if comment else {}
            extra |= {"xmp": xmp} if xmp else {}
    return _file(Image.fromarray(picture.pixels), options.format, options.quality, **extra), tuple(warnings)


def encode_thumbnail(file: bytes, edge: int) -> bytes:
    """A JPEG of a picture of this server's own, of up to `edge` pixels a side."""
    with Image.open(io.BytesIO(file)) as picture:
        picture.thumbnail((edge, edge))
        return _file(picture.convert("RGB"), "jpeg", PREVIEW_QUALITY)


def _fitted(comment: bytes, xmp: bytes) -> tuple[bytes, bytes, list[str]]:
    """What of a comment and an XMP packet goes into a JPEG, and warnings about the rest."""
    warnings = []
    if len(xmp) > MAX_XMP:
        warnings.append(f"a JPEG holds {MAX_XMP:,} bytes of recipe, and this one has {len(xmp):,}: the file has none")
        xmp = b""
    if len(comment) > MAX_COMMENT:
        warnings.append(f"the EXIF comment of the JPEG is cut to {MAX_COMMENT:,} of {len(comment):,} bytes")
    return comment[:MAX_COMMENT], xmp, warnings


def _text_chunks(picture: Picture, recipe: str) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    for keyword, text in picture.text.items():
        chunks.add_itxt(keyword, text)
    chunks.add_itxt("darkroom", recipe)
    return chunks


def _user_comment(encoded: bytes) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"UNICODE\0" + encoded
    return exif.tobytes()


def _xmp(recipe: str) -> bytes:
    """The packet with a recipe; characters that XML cannot have are escaped as JSON."""
    return XMP.format(escape(NOT_IN_XML.sub(lambda found: f"\\u{ord(found[0]):04x}", recipe))).encode()


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
