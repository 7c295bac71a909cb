"""Recipes: the parameters embedded in a picture, which reproduce it.

The server's pictures carry two texts: the JSON read here, and the form that many other programs show. In a PNG they
are the text chunks `darkroom` and `parameters`, in a JPEG or WebP the property `darkroom:recipe` of XMP and the EXIF
UserComment. The JSON is `{"darkroom": version, "parameters": {…}, "deterministic": …}`; its parameters are the proto
JSON of `darkroom.v1.Parameters` with the proto's field names.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from google.protobuf import json_format

from darkroom.v1 import parameters_pb2
from darkroom_client.errors import InvalidRequest

_KEY = "darkroom"
_XMP_NAME = "{urn:darkroom:v1}recipe"


@dataclass(frozen=True, slots=True)
class Recipe:
    """A picture's recipe. `generate(parameters=recipe)` reproduces a picture made from text."""

    parameters: parameters_pb2.Parameters
    deterministic: bool = False
    version: str = ""  # of the server
    edit: Mapping[str, Any] = field(default_factory=dict)  # EditRequest's `edit` as JSON, without pictures

    @classmethod
    def from_dict(cls, recipe: Mapping[str, Any]) -> "Recipe":
        """Parses a recipe's JSON object, as in `Image.metadata`, or that of its parameters alone.

        :raises InvalidRequest: if it is neither.
        """
        whole = recipe if "parameters" in recipe else {"parameters": recipe}
        parameters = parameters_pb2.Parameters()
        try:
            json_format.ParseDict(dict(whole["parameters"]), parameters, ignore_unknown_fields=True)
        except (json_format.ParseError, TypeError, ValueError, AttributeError) as error:
            raise InvalidRequest(f"this is not a recipe of Darkroom: {error}") from error
        version, edit = str(whole.get(_KEY, "")), whole.get("edit") or {}
        return cls(parameters, bool(whole.get("deterministic", False)), version, edit)


def read_recipe(picture: str | os.PathLike[str]) -> Recipe:
    """Reads the recipe of a picture file made by a Darkroom server.

    :raises InvalidRequest: if the file is no picture or has no recipe.
    :raises OSError: if the file cannot be read.
    """
    text = _embedded_text(Path(picture))
    try:
        recipe = json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"{picture}: its recipe is not valid JSON: {error}") from error
    if not isinstance(recipe, dict):
        raise InvalidRequest(f"{picture}: its recipe is not a JSON object")
    return Recipe.from_dict(recipe)


def _embedded_text(path: Path) -> str:
    import PIL.Image

    try:
        with PIL.Image.open(path) as image:
            text = image.info.get(_KEY) or _recipe_in_xmp(image.info.get("xmp", b""))
            if text is None and image.format == "PNG":
                image.load()  # text chunks may follow the pixels
                text = getattr(image, "text", {}).get(_KEY)
    except PIL.UnidentifiedImageError as error:
        raise InvalidRequest(f"{path} is not a picture") from error
    if text is None:
        raise InvalidRequest(f"{path} carries no recipe of Darkroom")
    return str(text)


def _recipe_in_xmp(packet: bytes) -> str | None:
    """The property `darkroom:recipe` of an XMP packet, an element or an attribute; None without one."""
    try:
        elements = list(ElementTree.fromstring(packet).iter()) if packet else []
    except ElementTree.ParseError:
        return None
    found = (each.text if each.tag == _XMP_NAME else each.get(_XMP_NAME) for each in elements)
    return next((text for text in found if text), None)
