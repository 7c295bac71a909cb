"""The safety checker of Stable Diffusion 1.x, for models whose safety policy is `flag` or `block`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from diffusers.pipelines.stable_diffusion import safety_checker
from PIL import Image

from darkroom_plugins import hookimpl
from darkroom_plugins.contract import SAFETY_CHECKER, Family, Finisher, Inspector
from darkroom_plugins.files import ModelFiles, meta_network
from darkroom_plugins.request import Pixels, Request
from darkroom_plugins.sample import Picture, Sample

darkroom_api_version = 1

CLASS = "StableDiffusionSafetyChecker"

safety_checker.logger.setLevel("ERROR")  # its warning claims a black picture whatever the policy


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
            return {SAFETY_CHECKER: open_checker(files)}
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


class SafetyChecker(safety_checker.StableDiffusionSafetyChecker):  # type: ignore[no-untyped-call]
    """Diffusers' safety checker with its image processor."""

    processor: Any  # a CLIPImageProcessor

    def concepts_in(self, pictures: Sequence[Pixels], device: torch.device, dtype: torch.dtype) -> list[bool]:
        """For each picture, (height, width, 3) uint8, whether it has one of the checker's concepts: diffusers'
        `nsfw_content_detected`."""
        images = [Image.fromarray(picture) for picture in pictures]
        prepared = self.processor(images, return_tensors="pt").pixel_values  # (n, 3, 224, 224)
        placeholders = torch.zeros(len(images))  # the checker overwrites images with concepts
        return self(clip_input=prepared.to(device, dtype), images=placeholders)[1]  # type: ignore[no-any-return]


def open_checker(files: ModelFiles) -> torch.nn.Module:
    """The model's safety checker, without its weights.

    :raises OSError, ValueError: the model has none, or its configuration cannot be read
    """
    if (files.index.get(SAFETY_CHECKER) or [None, None])[1] != CLASS:
        raise ValueError("the model has no safety checker")
    checker: Any = meta_network(SafetyChecker, files.config(SAFETY_CHECKER))
    checker.processor = _image_processor().from_pretrained(files.folder / "feature_extractor", local_files_only=True)
    return checker  # type: ignore[no-any-return]


def _image_processor() -> Any:
    """Transformers' class; of version 5 that which needs no torchvision, as the other warns without it."""
    return getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor


@hookimpl
def darkroom_finishers() -> Sequence[Finisher]:
    return [Safety()]
