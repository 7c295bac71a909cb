"""The recipe that a picture carries: what is needed to make it again.

A PNG of the server holds it twice: as text `darkroom`, the JSON that is read here, and as text `parameters`, which many
other programs show. The JSON is `{"darkroom": version, "parameters": {…}, "deterministic": …}`, its parameters being
the proto JSON of `darkroom.v1.Parameters` with the proto's own field names.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from darkroom.v1 import parameters_pb2
from darkroom_client.errors import InvalidRequest

_KEY = "darkroom"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is needed to make a picture again; pass it as `parameters=` to `generate`."""

    parameters: parameters_pb2.Parameters
    deterministic: bool = False
    version: str = ""  # of the server that made the picture
    edit: Mapping[str, Any] = field(default_factory=dict)  # what was done to a picture: EditRequest's edit, as JSON

    @classmethod
    def from_dict(cls, recipe: Mapping[str, Any]) -> "Recipe":
        """A recipe from its JSON object, as in `Image.metadata`, or from the JSON object of parameters alone.

        :raises InvalidRequest: when it is neither.
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
    """The recipe in a picture file that a Darkroom server made.

    :raises InvalidRequest: when the file is no picture, or carries no recipe.
    :raises OSError: when the file cannot be read.
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
            text = image.info.get(_KEY)
            if text is None:
                image.load()  # text may also stand behind the pixels
                text = getattr(image, "text", {}).get(_KEY)
    except PIL.UnidentifiedImageError as error:
        raise InvalidRequest(f"{path} is not a picture") from error
    if text is None:
        raise InvalidRequest(f"{path} carries no recipe of Darkroom")
    return str(text)
