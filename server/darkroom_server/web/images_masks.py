"""Masks of the OpenAI images API: there what is transparent is repainted, here what is white."""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from PIL import Image

from darkroom_plugins.errors import InvalidRequest, Violation
from darkroom_server.pictures.decode import BadImage

if TYPE_CHECKING:
    from darkroom_server.pictures.uploads import Uploads

Read: TypeAlias = Callable[..., Awaitable[Any]]  # runs a function off the event loop


class Masks:
    """Converts masks, off the event loop."""

    def __init__(self, read: Read, uploads: Uploads) -> None:
        self._read, self._uploads = read, uploads

    async def converted(self, data: bytes) -> bytes:
        """A PNG, white where the mask is transparent.

        :raises InvalidRequest: it is no picture, too large, or nowhere transparent
        """
        made: bytes = await self._read(_converted, data, self._uploads)
        return made


def _converted(data: bytes, uploads: Uploads) -> bytes:
    try:
        mask = uploads.decode("transparency", data)
    except BadImage as error:
        raise InvalidRequest([Violation("mask", str(error))]) from None
    if not mask.any():
        raise InvalidRequest([Violation("mask", "must have some transparent part, which is what is repainted")])
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG", compress_level=1)
    return file.getvalue()
