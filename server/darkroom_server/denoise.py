"""The numbers of one step: an evaluation over the rows of many samples, then each sample's own update."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from darkroom_plugins.request import Request
from darkroom_plugins.sample import Evaluation, Row, Sample

log = logging.getLogger(__name__)


def gather(samples: Iterable[Sample]) -> Evaluation:
    """The evaluation of all rows of these samples, each at its own timestep. Changes nothing in them."""
    rows, latents, extra, timesteps, prompts = [], [], [], [], []
    for sample in samples:
        scaled = _scaled(sample)
        for number, prompt in enumerate(sample.rows):
            rows.append(Row(sample, prompt, unconditional=number == 0 and len(sample.rows) == 2))
            latents.append(scaled)
            extra += [sample.extra_channels] if sample.extra_channels is not None else []
            timesteps.append(float(sample.timestep))
            prompts.append(prompt.hidden)
    where = latents[0].device
    behind = torch.cat(extra) if extra else None
    return Evaluation(rows, torch.cat(latents), torch.tensor(timesteps, device=where), torch.cat(prompts), behind)


def _scaled(sample: Sample) -> torch.Tensor:
    """The sample as the denoiser takes it."""
    step = sample.table.get(sample.evaluation)
    if step is None:
        return sample.scheduler.scale_model_input(sample.latents, sample.timestep)  # type: ignore[no-any-return]
    assert sample.latents is not None
    return sample.latents if step.scale == 1.0 else sample.latents * step.scale


def scatter(samples: Sequence[Sample], outputs: torch.Tensor) -> list[torch.Tensor]:
    """Each sample's own prediction, guided: (rows, channels, h, w) to one (1, channels, h, w) a sample."""
    parts = outputs.split([len(sample.rows) for sample in samples])
    return [guide(part, sample.request) for part, sample in zip(parts, samples, strict=True)]


def guide(outputs: torch.Tensor, request: Request) -> torch.Tensor:
    """Classifier-free guidance (Ho and Salimans 2022): (2, channels, h, w), unconditional first, to
    (1, channels, h, w); with rescale as Lin et al. 2023, section 3.4. A single row is returned as it is."""
    if len(outputs) == 1:
        return outputs
    unconditional, conditional = outputs.chunk(2)
    guided = unconditional + request.guidance_scale * (conditional - unconditional)
    if request.guidance_rescale > 0:
        guided = rescale_noise_cfg(guided, conditional, guidance_rescale=request.guidance_rescale)
    return guided


def advance(sample: Sample, output: torch.Tensor, want_estimate: bool) -> torch.Tensor | None:
    """Take one evaluation's step: scheduler, generator and latents change together, or not at all.

    Returns the estimate of the clean latents, (1, channels, h, w), where it is wanted.
    """
    assert sample.generator is not None
    scheduler, generator = _copy(sample.scheduler), sample.generator.clone_state()
    arguments = step_arguments(scheduler, generator, sample.request.eta)
    result = scheduler.step(output, sample.timestep, sample.latents, **arguments)
    clean = partial(clean_estimate, sample, result, output) if want_estimate else None
    return commit(sample, scheduler, generator, result.prev_sample, clean)


def commit(
    sample: Sample,
    scheduler: Any,
    generator: torch.Generator,
    latents: torch.Tensor,
    clean: Callable[[], torch.Tensor] | None,
) -> torch.Tensor | None:
    """Give a sample what a step made, all of it or nothing.

    Returns the estimate of the clean latents that its task makes of `clean`, if given.
    """
    before = sample.scheduler, sample.generator
    sample.scheduler, sample.generator = scheduler, generator
    try:
        estimate = _estimate(sample, clean) if clean is not None else None
        sample.latents = sample.task.after_evaluation(sample, latents)
    except BaseException:
        sample.scheduler, sample.generator = before
        raise
    sample.evaluation += 1
    return estimate


def _estimate(sample: Sample, clean: Callable[[], torch.Tensor]) -> torch.Tensor | None:
    try:
        return sample.task.estimate(sample, clean())
    except Exception as error:  # of a scheduler from elsewhere: the picture does not depend on it
        log.warning("no preview under %s: %r", type(sample.scheduler).__name__, error)
        return None


def _copy(scheduler: Any) -> Any:
    """A scheduler of its own: schedulers change their attributes, and lists in place, but never tensors."""
    copied = copy.copy(scheduler)
    for name, value in vars(scheduler).items():
        if isinstance(value, list):
            setattr(copied, name, value.copy())
    return copied


def step_arguments(scheduler: Any, generator: torch.Generator, eta: float) -> dict[str, Any]:
    """Those of these arguments that the scheduler's step takes."""
    arguments = _step_arguments(scheduler.__class__)
    return {name: value for name, value in (("generator", generator), ("eta", eta)) if name in arguments}


@lru_cache
def _step_arguments(scheduler: Any) -> frozenset[str]:
    return frozenset(inspect.signature(scheduler.step).parameters)


def clean_estimate(sample: Sample, result: Any, output: torch.Tensor) -> torch.Tensor:
    """The clean latents that a step predicts (x0), from the scheduler where it says, else from x_t and the output;
    `sample.latents` are those before the step, its scheduler is after it."""
    for name in ("pred_original_sample", "denoised"):
        if (estimate := getattr(result, name, None)) is not None:
            return estimate.to(output.dtype)  # type: ignore[no-any-return]  # some compute in float32
    alpha, sigma = _noise_levels(sample.scheduler, sample.timestep)
    prediction_type = sample.scheduler.config.get("prediction_type", "epsilon")
    if prediction_type == "sample":
        return output
    if prediction_type == "v_prediction":
        return alpha * sample.latents - sigma * output  # type: ignore[no-any-return]
    return (sample.latents - sigma * output) / max(alpha, 1e-3)  # type: ignore[no-any-return]  # IPNDM begins at 0


def _noise_levels(scheduler: Any, timestep: torch.Tensor) -> tuple[Any, Any]:
    """alpha_t and sigma_t of x_t = alpha_t x_0 + sigma_t noise, at the evaluation that the scheduler just took."""
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):  # DPM-Solver, UniPC, DEIS, SA-Solver
        return scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[scheduler.step_index - 1])  # type: ignore[no-any-return]
    if hasattr(scheduler, "alphas_cumprod"):  # PNDM, TCD
        cumulative = scheduler.alphas_cumprod[int(timestep)]
        return cumulative.sqrt(), (1 - cumulative).sqrt()
    index = scheduler.step_index - 1  # IPNDM
    return scheduler.alphas[index], scheduler.betas[index]


def noise_level(scheduler: Any, evaluation: int) -> float | None:
    """The sigma at which an evaluation begins, for schedulers that have a table of them."""
    sigmas = getattr(scheduler, "sigmas", None)
    return float(sigmas[evaluation]) if sigmas is not None and evaluation < len(sigmas) else None


def to_pixels(images: torch.Tensor) -> Any:
    """(n, 3, h, w) in -1 to 1 to (n, h, w, 3) uint8, rounded as diffusers' VaeImageProcessor does."""
    images = (images.float() * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    return (images * 255).round().to(torch.uint8).cpu().numpy()
