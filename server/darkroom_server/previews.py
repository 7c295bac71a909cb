"""Small pictures of images in the making, on the engine's thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from darkroom_plugins.manager import Plugins
from darkroom_plugins.request import PreviewMode, PreviewOptions
from darkroom_server.denoise import to_pixels
from darkroom_server.jobs import Seat
from darkroom_server.models import Model
from darkroom_server.sampling import DECODED_AT_ONCE, Outcome, each_or_halves


def wants_preview(seat: Seat, step: int, now: float) -> bool:
    """Whether this step of this image is to be shown."""
    options: PreviewOptions = seat.job.request.preview
    due = step % options.every_n_steps == 0 and now - seat.previewed >= options.min_interval_seconds
    return options.mode != "off" and due and not (seat.denoiser_stays and options.mode == "full-vae")


class PreviewDecoders:
    """The preview decoders of each model, built when first needed or at `prepare`."""

    def __init__(self, plugins: Plugins) -> None:
        self._plugins = plugins
        self._built: dict[tuple[str, PreviewMode], Callable[[torch.Tensor], torch.Tensor]] = {}

    def prepare(self, model: Model) -> None:
        """Build the decoders that cost time, so that no job waits for them."""
        for mode in model.preview_modes:
            if mode != "off":
                self._decoder(model, mode)

    def _decoder(self, model: Model, mode: PreviewMode) -> Callable[[torch.Tensor], torch.Tensor]:
        key = (model.name, mode)
        if key not in self._built:
            self._built[key] = self._plugins.preview_decoders[mode].build(model.family)
        return self._built[key]

    def show(self, wanted: Sequence[tuple[Seat, torch.Tensor]]) -> list[Outcome[Any]]:
        """Each seat's (h, w, 3) uint8 picture of its (1, channels, h, w) estimate. All are of one model, mode and
        shape."""
        return each_or_halves(self._show, wanted, DECODED_AT_ONCE)

    def _show(self, wanted: Sequence[tuple[Seat, torch.Tensor]]) -> list[Any]:
        job = wanted[0][0].job
        decode = self._decoder(job.plan.model, job.request.preview.mode)
        pictures = list(to_pixels(decode(torch.cat([estimate for _, estimate in wanted]))))
        if len(pictures) != len(wanted):
            raise ValueError(f"a preview decoder made {len(pictures)} pictures of {len(wanted)}")
        return pictures
