"""VAE decoding of finished samples."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from darkroom_plugins import calls
from darkroom_plugins.contract import Inspector, ModelInfo
from darkroom_plugins.errors import NonFinite
from darkroom_plugins.request import Request
from darkroom_plugins.sample import Sample
from darkroom_server.device.transfer import PendingImage, side_stream, to_pictures
from darkroom_server.engine.long_work import LongWork
from darkroom_server.engine.recovery import Outcome, Recovery, work
from darkroom_server.engine.slot import Slot
from darkroom_server.errors import TOO_LITTLE_MEMORY, OutOfMemory

DECODED_AT_ONCE = 8  # images of the model's own size
PIXELS_AT_ONCE = 8 * 512 * 512  # bounds the VAE's memory, some 8 KiB a pixel in single precision, where those are large


@dataclass(frozen=True, slots=True)
class Decoded:
    """A sample's image."""

    picture: PendingImage
    tiled: bool = False  # whether the VAE decoded it in tiles
    findings: dict[str, Any] = field(default_factory=dict)  # by inspector


class Decoder:
    """Decodes finished samples. One that does not fit into memory even alone is decoded in tiles."""

    def __init__(self, recovery: Recovery, long: LongWork) -> None:
        self._recovery, self._long = recovery, long

    def decode(self, done: Sequence[tuple[Slot, Sample]], on_side_stream: bool) -> list[Outcome[Decoded]]:
        """Each sample's image with the findings of inspectors. With `on_side_stream` CUDA devices decode on a side
        stream; weights must not move meanwhile."""
        if not done:
            return []
        plan, latents = done[0][0].plan, [sample.latents for _, sample in done]
        with side_stream(plan.model.family.device, latents) if on_side_stream else contextlib.nullcontext():
            if plan.tiled:
                return [self._in_tiles(each, OutOfMemory(TOO_LITTLE_MEMORY)) for each in done]
            most = 1 if plan.request.deterministic else pictures_at_once(plan.model.info, plan.request)
            whole = self._recovery.each(work("decode", plan.request), self._decode, done, most)
            return [
                self._in_tiles(each, outcome) if isinstance(outcome, OutOfMemory) else outcome
                for each, outcome in zip(done, whole, strict=True)
            ]

    def _decode(
        self, done: Sequence[tuple[Slot, Sample]], tiling: AbstractContextManager[None] | None = None
    ) -> list[Decoded]:
        samples = [sample for _, sample in done]
        model, latents = samples[0].model, torch.cat([sample.latents for sample in samples])
        with self._long.divided("decode", [slot for slot, _ in done], shared=True, tiling=tiling):
            with calls.calling(model, "decode", timed=False):
                images = model.decode(latents)
            return _pictures(samples, images, tiled=tiling is not None)

    def _in_tiles(self, done: tuple[Slot, Sample], failure: OutOfMemory) -> Outcome[Decoded]:
        """Its image, decoded in tiles; `failure` where its model does not tile this size."""
        (slot, sample) = done
        request = sample.request
        tiling = calls.tiling(sample.model, request)
        if tiling is None:
            return failure
        (outcome,) = self._recovery.each(work("tiles", request), partial(self._decode, tiling=tiling), [done])
        if isinstance(outcome, Decoded) and not slot.plan.tiled:
            self._recovery.limits.exclude(work("decode", request))
        return outcome


def pictures_at_once(model: ModelInfo, request: Request) -> int:
    """How many pictures of this size to decode at once."""
    own, pixels = model.default_width * model.default_height, request.width * request.height
    return max(1, min(DECODED_AT_ONCE, DECODED_AT_ONCE * own // pixels, PIXELS_AT_ONCE // pixels))


def _pictures(samples: Sequence[Sample], images: torch.Tensor, tiled: bool) -> list[Decoded]:
    decoded = [Decoded(picture, tiled) for picture in to_pictures(images)]
    for inspector in {i.name: i for sample in samples for i in sample.inspectors}.values():
        pairs = zip(samples, decoded, strict=True)
        _inspect(inspector, [(sample, each) for sample, each in pairs if inspector in sample.inspectors])
    return decoded


def _inspect(inspector: Inspector, decoded: Sequence[tuple[Sample, Decoded]]) -> None:
    """Add this inspector's finding to each image. Blocks until the pixels are on the CPU."""
    ready = []
    for sample, each in decoded:
        with contextlib.suppress(NonFinite):  # raised again by the next read
            ready.append((sample, each, each.picture.read()))
    if not ready:
        return
    found = calls.inspect(inspector, [sample for sample, _, _ in ready], [pixels for *_, pixels in ready])
    for (_, each, _), finding in zip(ready, found, strict=True):
        each.findings[inspector.name] = finding
