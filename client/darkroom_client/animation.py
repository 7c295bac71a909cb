"""Animations: a picture as it develops."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image

from darkroom_client.events import Image, Preview

FORMATS = {".webp": "WEBP", ".gif": "GIF", ".png": "PNG"}  # by the file's ending; PNG: APNG
_STEP, _END = 80, 2000  # milliseconds that a step and the finished picture are shown
_OPTIONS: dict[str, dict[str, Any]] = {"WEBP": {"quality": 90, "method": 4}}


def save_animation(path: str | os.PathLike[str], previews: Sequence[Preview], picture: Image) -> Path:
    """Writes previews of a picture as frames of its size, then the picture itself, which stays longer; in a loop.

    :param path: its ending is one of `FORMATS`.
    :param previews: in the order of their steps. One stays as long as the steps take until the next.
    :raises ValueError: for another ending, and without previews.
    :returns: the path.
    """
    target = Path(path)
    if target.suffix.lower() not in FORMATS:
        raise ValueError(f"{target} ends in {target.suffix or 'nothing'}; animations end in {', '.join(FORMATS)}")
    if not previews:
        raise ValueError("an animation needs at least one preview")
    final = picture.pil.convert("RGB")
    steps = [preview.step for preview in previews]
    times = [_STEP * (after - step) for step, after in zip(steps, [*steps[1:], steps[-1] + 1], strict=True)]
    first, *others = (_frame(preview, final.size) for preview in previews)
    kind = FORMATS[target.suffix.lower()]
    first.save(
        target,
        kind,
        save_all=True,
        append_images=[*others, final],
        duration=[*times, _END],
        loop=0,
        **_OPTIONS.get(kind, {}),
    )
    return target


def _frame(preview: Preview, size: tuple[int, int]) -> PIL.Image.Image:
    """The preview enlarged to (width, height); on black, if it shows a region in another ratio."""
    picture = preview.pil.convert("RGB")
    scale = min(whole / edge for whole, edge in zip(size, picture.size, strict=True))
    scaled = [round(edge * scale) for edge in picture.size]
    width, height = (  # what lacks less than a preview's pixel was lost by rounding
        whole if whole - edge <= scale else edge for whole, edge in zip(size, scaled, strict=True)
    )
    frame = PIL.Image.new("RGB", size)
    enlarged = picture.resize((width, height), PIL.Image.Resampling.LANCZOS)
    frame.paste(enlarged, ((size[0] - width) // 2, (size[1] - height) // 2))
    return frame
