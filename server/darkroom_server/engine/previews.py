"""Previews: decodes estimates of clean latents. For the engine's thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from darkroom_plugins import calls
from darkroom_plugins.manager import Plugins
from darkroom_plugins.request import PreviewMode, PreviewOptions
from darkroom_server.device.transfer import PendingImage, to_pictures
from darkroom_server.engine.decode import pictures_at_once
from darkroom_server.engine.long_work import LongWork
from darkroom_server.engine.recovery import Outcome, Recovery, work
from darkroom_server.engine.slot import Slot
from darkroom_server.errors import OutOfMemory
from darkroom_server.models.model import Model


def wants_preview(slot: Slot, step: int, now: float) -> bool:
    """Whether to make a preview after this step: it is due, and needs no network swap where that is to be skipped."""
    return preview_is_due(slot, step, now) and not (slot.skip_network_swap and slot.plan.preview_by_network)


def preview_is_due(slot: Slot, step: int, now: float) -> bool:
    """Whether the request's preview options ask for a preview after this step."""
    options: PreviewOptions = slot.plan.request.preview
    nth = (slot.steps_before + step) % options.every_n_steps == 0
    return options.mode != "off" and nth and now - slot.previewed >= options.min_interval_seconds


class PreviewDecoders:
    """The preview decoders of each model, built on first use or by `prepare`."""

    def __init__(self, plugins: Plugins) -> None:
        self._plugins = plugins
        self.built: dict[tuple[str, PreviewMode], Callable[[torch.Tensor], torch.Tensor]] = {}

    def prepare(self, model: Model) -> None:
        """Build all decoders of a model ahead of its jobs."""
        for mode in model.preview_modes:
            if mode != "off":
                self._decoder(model, mode)

    def _decoder(self, model: Model, mode: PreviewMode) -> Callable[[torch.Tensor], torch.Tensor]:
        key = (model.name, mode)
        if key not in self.built:
            entry = self._plugins.preview_decoders[mode]
            with calls.calling(entry, "build", timed=False):
                self.built[key] = entry.build(model.family)
        return self.built[key]

    def decode(
        self, wanted: Sequence[tuple[Slot, torch.Tensor]], recovery: Recovery, long: LongWork
    ) -> list[Outcome[PendingImage]]:
        """The preview of each slot's (1, channels, h, w) estimate; all of one model, mode and shape. After one that did
        not fit into memory even alone, previews of this kind are skipped for a while."""
        if not wanted:
            return []
        request = wanted[0][0].plan.request
        preview_work = work(f"preview {request.preview.mode}", request)
        most = pictures_at_once(wanted[0][0].plan.model.info, request)
        outcomes = recovery.each(preview_work, partial(self._decode, long), wanted, most, relieve=False)
        if any(isinstance(outcome, OutOfMemory) for outcome in outcomes):
            recovery.limits.exclude(preview_work)
        return outcomes

    def _decode(self, long: LongWork, wanted: Sequence[tuple[Slot, torch.Tensor]]) -> list[PendingImage]:
        plan = wanted[0][0].plan
        mode, model = plan.request.preview.mode, plan.model
        decoder = self._decoder(model, mode)
        tiling = calls.tiling(model.family, plan.request) if plan.tiled else None
        with (
            long.divided(f"{mode} preview", [slot for slot, _ in wanted], shared=True, tiling=tiling),
            calls.calling(self._plugins.preview_decoders[mode], "preview"),
        ):
            return to_pictures(decoder(torch.cat([estimate for _, estimate in wanted])))
