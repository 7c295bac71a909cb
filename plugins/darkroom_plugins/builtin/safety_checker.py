"""The network of the safety checker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers.pipelines.stable_diffusion import safety_checker
from PIL import Image

from darkroom_plugins.files import meta_network
from darkroom_plugins.request import Pixels

safety_checker.logger.setLevel("ERROR")  # its warning claims a black picture whatever the policy


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


def meta_checker(config: Mapping[str, Any], processor: Path) -> SafetyChecker:
    """The network on the meta device, with the image processor of this folder."""
    checker: Any = meta_network(SafetyChecker, config)
    checker.processor = _image_processor().from_pretrained(processor, local_files_only=True)
    return checker  # type: ignore[no-any-return]


def _image_processor() -> Any:
    """Transformers' class; of version 5 that which needs no torchvision, as the other warns without it."""
    return getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
