"""The safety checker of Stable Diffusion 1.x, for models whose safety policy is `flag` or `block`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from darkroom_plugins import hookimpl
from darkroom_plugins.contract import SAFETY_CHECKER, Family, Finisher, Inspector
from darkroom_plugins.files import MetaNetwork, MetaNetworks, ModelFiles, read_json
from darkroom_plugins.request import Pixels, Request
from darkroom_plugins.sample import Picture, Sample

if TYPE_CHECKING:
    import torch

darkroom_api_version = 1

CLASS = "StableDiffusionSafetyChecker"


class Safety(Inspector):
    """Its finding is "passed", "flagged" (the picture is sent unchanged) or "blocked" (a black one is sent)."""

    name = "safety"
    description = "Flags or blocks pictures in which the model's safety checker finds something."

    def wants(self, request: Request, parameters: None) -> bool:
        return request.safety != "off"

    def components(self, model: Family, files: ModelFiles, settings: Any) -> Mapping[str, torch.nn.Module]:
        if settings.safety == "off":
            return {}
        try:
            return MetaNetworks({SAFETY_CHECKER: open_checker(files)})
        except (OSError, ValueError) as error:
            raise ValueError(f"safety: {error}") from error

    def inspect(self, samples: Sequence[Sample], pictures: Sequence[Pixels]) -> list[str]:
        model = samples[0].model
        checker: Any = model.components[SAFETY_CHECKER]
        found = checker.concepts_in(pictures, model.device, model.dtype_of(SAFETY_CHECKER))
        verdicts = ("blocked" if sample.request.safety == "block" else "flagged" for sample in samples)
        return [verdict if flagged else "passed" for verdict, flagged in zip(verdicts, found, strict=True)]

    def finish(self, picture: Picture, request: Request, parameters: None) -> Picture:
        if picture.findings[self.name] == "blocked":
            picture.pixels = np.zeros_like(picture.pixels)
        return picture


def open_checker(files: ModelFiles) -> MetaNetwork:
    """The model's safety checker, without its weights.

    :raises OSError, ValueError: the model has none, or its configuration cannot be read
    """
    if (files.index.get(SAFETY_CHECKER) or [None, None])[1] != CLASS:
        raise ValueError("the model has no safety checker")
    processor = files.folder / "feature_extractor"
    read_json(processor / "preprocessor_config.json")
    config = files.config(SAFETY_CHECKER)
    return MetaNetwork(CLASS, config, lambda: _network(config, processor))


def _network(config: Mapping[str, Any], processor: Path) -> torch.nn.Module:
    from darkroom_plugins.builtin.safety_checker import meta_checker

    return meta_checker(config, processor)


@hookimpl
def darkroom_finishers() -> Sequence[Finisher]:
    return [Safety()]
