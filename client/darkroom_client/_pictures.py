"""Pictures of many kinds as the bytes of an image file."""

import os
from io import BytesIO
from pathlib import Path
from typing import Any

from darkroom_client.events import Picture

_PNG_MODES = ("1", "L", "LA", "I;16", "I;16B", "P", "RGB", "RGBA")  # Pillow's, which a PNG holds as they are
_TIFF_MODES = ("F", "I", "I;16L")  # of which Pillow writes TIFF, but not PNG
_CONVERTED = {"La": "LA", "PA": "RGBA", "RGBa": "RGBA"}  # others, such as CMYK, to RGB
_FORMS = "(height, width) or (height, width, 3 or 4)"


def image_bytes(image: Any) -> bytes:
    """An encoded image: bytes, files and events as they are, PIL images and NumPy arrays as PNG or TIFF.

    :raises TypeError: for other types.
    :raises ValueError: for arrays that are no pictures.
    :raises OSError: if the file cannot be read.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, Picture):
        return image.image_bytes
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    if hasattr(image, "__array_interface__") and not hasattr(image, "save"):
        return _encoded(_from_array(image))
    if hasattr(image, "read"):
        return _read(image)
    if hasattr(image, "save"):
        return _encoded(image)
    kinds = "bytes, a path, an open file, an Image event, a PIL image or a NumPy array"
    raise TypeError(f"must be {kinds}, not {type(image).__name__}")


def _read(file: Any) -> bytes:
    """The whole file, wherever it stands, as a BytesIO stands at its end after Pillow has written it."""
    if file.seekable():
        file.seek(0)
    data = file.read()
    if isinstance(data, str):
        raise TypeError("must be a file opened in binary mode")
    return bytes(data)


def _encoded(image: Any) -> bytes:
    if image.mode == "I;16N":  # the machine's byte order; Pillow neither writes nor converts it
        import PIL.Image

        image = PIL.Image.frombytes("I;16", image.size, image.tobytes(), "raw", image.mode)
    if image.mode not in (*_PNG_MODES, *_TIFF_MODES):
        image = image.convert(_CONVERTED.get(image.mode, "RGB"))
    buffer = BytesIO()
    image.save(buffer, "TIFF" if image.mode in _TIFF_MODES else "PNG")
    return buffer.getvalue()


def _from_array(array: Any) -> Any:
    import PIL.Image

    if len(array.shape) == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if len(array.shape) not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)) or 0 in array.shape:
        raise ValueError(f"must be an array of {_FORMS}, not {tuple(array.shape)}")
    kind = array.dtype.kind
    if kind == "f" and not (array.min() >= 0 and array.max() <= 1):  # refuses NaN, too
        raise ValueError(f"must have floats from 0 to 1, not {array.min():g} to {array.max():g}")
    if kind == "f" or kind == "b":
        array = (array * 255.0).round().astype("uint8")
    if array.dtype.name != "uint8":
        raise ValueError(f"must be an array of uint8, bool or floats from 0 to 1, not {array.dtype.name}")
    return PIL.Image.fromarray(array)
