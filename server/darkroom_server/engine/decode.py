"""VAE decoding of finished samples."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from darkroom_plugins import calls
from darkroom_plugins.contract import Inspector
from darkroom_plugins.errors import NonFinite
from darkroom_plugins.sample import Sample
from darkroom_server.device.transfer import PendingImage, side_stream, to_pictures
from darkroom_server.engine.recovery import Outcome, Recovery, work
from darkroom_server.errors import OutOfMemory

DECODED_AT_ONCE = 8  # images: bounds the memory of the VAE


@dataclass(frozen=True, slots=True)
class Decoded:
    """A sample's image."""

    picture: PendingImage
    tiled: bool = False  # whether the VAE decoded it in tiles, as memory was short
    findings: dict[str, Any] = field(default_factory=dict)  # by inspector


def decode(samples: Sequence[Sample], recovery: Recovery, on_side_stream: bool) -> list[Outcome[Decoded]]:
    """Each sample's image with the findings of inspectors. One that does not fit into memory even alone is decoded in
    tiles. With `on_side_stream` CUDA devices decode on a side stream; weights must not move meanwhile."""
    if not samples:
        return []
    latents = [sample.latents for sample in samples]
    with side_stream(samples[0].model.device, latents) if on_side_stream else contextlib.nullcontext():
        whole = recovery.each(work("decode", samples[0].request), _decode, samples, DECODED_AT_ONCE)
        return [
            _in_tiles(sample, outcome, recovery) if isinstance(outcome, OutOfMemory) else outcome
            for sample, outcome in zip(samples, whole, strict=True)
        ]


def _decode(samples: Sequence[Sample]) -> list[Decoded]:
    model, latents = samples[0].model, torch.cat([sample.latents for sample in samples])
    with calls.calling(model, "decode", timed=False):
        images = model.decode(latents)
    return _pictures(samples, images)


def _in_tiles(sample: Sample, failure: OutOfMemory, recovery: Recovery) -> Outcome[Decoded]:
    """Its image, decoded in tiles; `failure` where its model does not tile this size."""
    (outcome,) = recovery.each(work("tiles", sample.request), _decode_tiled, [sample])
    if isinstance(outcome, Decoded):
        recovery.limits.exclude(work("decode", sample.request))
    return failure if outcome is None else outcome


def _decode_tiled(samples: Sequence[Sample]) -> list[Decoded | None]:
    (sample,) = samples
    with calls.calling(sample.model, "decode_tiled", timed=False):
        images = sample.model.decode_tiled(sample.latents)
    return [None] if images is None else [*_pictures(samples, images, tiled=True)]


def _pictures(samples: Sequence[Sample], images: torch.Tensor, tiled: bool = False) -> list[Decoded]:
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
