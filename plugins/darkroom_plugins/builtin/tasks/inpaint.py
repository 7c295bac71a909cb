"""Inpainting and outpainting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from darkroom_plugins import hookimpl
from darkroom_plugins.canvas import Canvas
from darkroom_plugins.contract import Task
from darkroom_plugins.deferred import torch
from darkroom_plugins.errors import InvalidRequest, Violation
from darkroom_plugins.latents import noise_for, noised, skipped_evaluations, vae_input
from darkroom_plugins.request import EditChoice, Inpaint, Outpaint, Request
from darkroom_plugins.sample import Sample
from darkroom_plugins.tensors import to_device

darkroom_api_version = 1

Mask = npt.NDArray[np.bool_]
SEAM = 4  # pixels: blur between an outpainted margin and the picture
THIN = "the mask is in places thinner than a latent of the model, {0}x{0} pixels: those that it touches are repainted"
ALL = "the mask is white everywhere: the whole picture is repainted"


@dataclass(frozen=True, slots=True)
class OriginalLatents:
    """The original picture's latents, restored outside the mask after each step."""

    latents: torch.Tensor  # (1, channels, h, w), clean
    noise: torch.Tensor  # (1, channels, h, w), the same at every step
    mask: torch.Tensor  # (1, 1, h, w), 1: repaint


class InpaintTask(Task):
    """Repaints the white part of a mask (diffusers' StableDiffusionInpaintPipeline). With a text-to-image model the
    original latents are restored outside the mask after each step; an inpainting model has mask and masked latents as
    extra input channels."""

    name = "inpaint"
    description = "The part of a picture under a mask repainted."
    rpcs = ("Edit",)
    edits: ClassVar[tuple[type[EditChoice], ...]] = (Inpaint,)
    adds_noise = True

    def canvas(self, request: Request, parameters: None) -> Canvas:
        edit = self._edit(request)
        blur = edit.mask_blur if edit.keep_unmasked or edit.padding_crop is not None else None
        canvas = Canvas.of(request, mask=Image.fromarray(edit.mask), padding=edit.padding_crop, mask_blur=blur)
        return _with_something_to_repaint(canvas, "inpaint.mask")

    def _edit(self, request: Request) -> Inpaint:
        if not isinstance(request.edit, Inpaint):
            raise InvalidRequest([Violation("inpaint", "must be set for the task inpaint")])
        return request.edit

    def _strength(self, request: Request) -> float:
        return self._edit(request).strength

    def first_evaluation(self, request: Request, timesteps: torch.Tensor, order: int, parameters: None) -> int:
        return skipped_evaluations(self._strength(request), request, timesteps, order)

    def begin(self, sample: Sample, parameters: None) -> None:
        model, canvas = sample.model, sample.canvas
        assert canvas.image is not None
        assert canvas.mask is not None
        image, strength = vae_input(canvas.image, model), self._strength(sample.request)
        # diffusers' order of draws: the picture's latents if needed, noise, the masked picture's latents.
        latents = model.encode(image, sample.generator) if strength < 1 or not model.info.inpainting else None
        noise = noise_for(sample)
        factor = canvas.mask.shape[-1] // noise.shape[-1]
        of_latents = latent_mask(canvas.mask, factor)
        sample.warnings += _surprises(canvas, of_latents, factor)
        pixels, mask = _tensor(canvas.mask, image), _tensor(of_latents, image)
        if model.info.inpainting:
            masked = model.encode(image * (pixels < 0.5), sample.generator)
            sample.extra_channels = torch.cat([mask, masked], dim=1)
        else:
            noise_for(sample)  # diffusers draws masked latents here, too
            assert latents is not None
            sample.state[self.name] = OriginalLatents(latents, noise, mask)
        if sample.done:
            assert latents is not None
            sample.latents = latents
        elif strength < 1:
            assert latents is not None
            sample.latents = noised(sample, latents, noise, sample.timestep)
        else:
            sample.latents = noise * sample.scheduler.init_noise_sigma

    def after_evaluation(self, sample: Sample, latents: torch.Tensor, parameters: None) -> torch.Tensor:
        original: OriginalLatents | None = sample.state.get(self.name)
        if original is None:
            return latents
        background, following = original.latents, sample.timesteps[sample.evaluation + 1 : sample.evaluation + 2]
        if len(following):
            background = noised(sample, background, original.noise, following[0])
        return (1 - original.mask) * background + original.mask * latents

    def estimate(self, sample: Sample, latents: torch.Tensor, parameters: None) -> torch.Tensor:
        original: OriginalLatents | None = sample.state.get(self.name)
        return latents if original is None else (1 - original.mask) * original.latents + original.mask * latents


class OutpaintTask(InpaintTask):
    """Inpaints margins, which are padded with the picture's edge pixels."""

    name = "outpaint"
    description = "A picture painted on beyond its edges."
    edits = (Outpaint,)

    def canvas(self, request: Request, parameters: None) -> Canvas:
        if not isinstance(request.edit, Outpaint) or request.image is None:
            raise InvalidRequest([Violation("outpaint", "must be set for the task outpaint")])
        edit, (height, width) = request.edit, request.image.shape[:2]
        margins = [(edit.top, edit.bottom), (edit.left, edit.right)]
        frame = np.pad(request.image, [*margins, (0, 0)], mode="edge")
        mask = np.pad(np.zeros((height, width), np.uint8), margins, constant_values=255)
        canvas = Canvas.of(request, Image.fromarray(frame), mask=Image.fromarray(mask), mask_blur=SEAM)
        return _with_something_to_repaint(canvas, "outpaint")

    def _strength(self, request: Request) -> float:
        return 1.0


def latent_mask(mask: Mask, factor: int) -> Mask:
    """(height, width) to (height / factor, width / factor): for each latent its first pixel, as in diffusers. Where the
    mask is thinner than a latent, so that those may miss it: every latent that it touches."""
    # The first pixels of the squares of a latent's size that lie in it; then those squares and half a latent around.
    reach, square = factor // 2, np.ones((factor, factor), np.uint8)
    inside = cv2.erode(mask.astype(np.uint8), square, anchor=(0, 0), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    around = np.ones((factor + 2 * reach,) * 2, np.uint8)
    thick = cv2.dilate(inside, around, anchor=(factor - 1 + reach,) * 2)
    thin = mask & (thick == 0)
    height, width = mask.shape
    touched = thin.reshape(height // factor, factor, width // factor, factor).any(axis=(1, 3))
    return np.asarray(mask[::factor, ::factor] | touched)


def _surprises(canvas: Canvas, of_latents: Mask, factor: int) -> Iterator[str]:
    """What is repainted beside the mask and seen in the result, or may not be meant."""
    if canvas.mask is None or canvas.overlay is not None:
        return
    if canvas.mask.all():
        yield ALL
    if (of_latents > canvas.mask[::factor, ::factor]).any():
        yield THIN.format(factor)


def _tensor(mask: Mask, like: torch.Tensor) -> torch.Tensor:
    """(height, width) to (1, 1, height, width), 0 or 1, on the device and in the dtype of another tensor."""
    return to_device(torch.from_numpy(mask.copy()).to(like.dtype), like.device)[None, None]


def _with_something_to_repaint(canvas: Canvas, path: str) -> Canvas:
    """The canvas. Its mask may be cut off, or too thin, at another size than its own.

    :raises InvalidRequest: nothing of the mask is left
    """
    if canvas.mask is None or not canvas.mask.any():
        width, height = canvas.size
        problem = f"leaves nothing to repaint at {width} x {height} pixels: it is cut off or too thin for that size"
        raise InvalidRequest([Violation(path, problem)])
    return canvas


@hookimpl
def darkroom_tasks() -> Sequence[Task]:
    return [InpaintTask(), OutpaintTask()]
