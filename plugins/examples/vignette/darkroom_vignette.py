"""Darkens a picture's corners: `extensions {"vignette": {"strength": 0.5}}`."""

import numpy as np
from pydantic import BaseModel, Field

from darkroom_plugins import Finisher, hookimpl

darkroom_api_version = 1


class Vignette(Finisher):
    name = "vignette"

    class Parameters(BaseModel, extra="forbid"):
        strength: float = Field(0.5, ge=0, le=1, description="0 leaves the picture as it is, 1 makes corners black.")

    def finish(self, picture, request, parameters):
        height, width, _ = picture.pixels.shape
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        light = 1 - parameters.strength * (x**2 + y**2) / 2
        picture.pixels = (picture.pixels * light[..., None]).round().astype(np.uint8)
        return picture


@hookimpl
def darkroom_finishers():
    return [Vignette()]
