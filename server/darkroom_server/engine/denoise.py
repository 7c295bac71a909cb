"""The numbers of one step: an evaluation over the rows of many samples, then each sample's own update."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from darkroom_plugins.request import Request
from darkroom_plugins.sample import Evaluation, Row, Sample, own_prompts
from darkroom_plugins.tensors import to_device

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Stepped:
    """What a step came to; its sample does not have it yet."""

    scheduler: Any
    generator: torch.Generator
    latents: torch.Tensor  # (1, channels, h, w)
    clean: Callable[[], torch.Tensor] | None  # the estimate of the clean latents, of this shape, where it is wanted


def rows_of(sample: Sample) -> list[Row]:
    """The rows of a sample's next evaluation, the unconditional one first where there is guidance."""
    prompts = sample.conditions
    guided = len(prompts) == 2
    return [Row(sample, prompt, unconditional=guided and n == 0) for n, prompt in enumerate(prompts)]


def gather(rows: Sequence[Row]) -> Evaluation:
    """The evaluation of these rows, each at its own timestep. Changes nothing in their samples but what the
    first keeps of all."""
    samples = {sample: number for number, sample in enumerate(dict.fromkeys(row.sample for row in rows))}
    constants = rows[0].sample.constants
    numbers = [samples[row.sample] for row in rows]
    scaled = _scaled(list(samples))
    latents = torch.cat([scaled[number] for number in numbers])
    times = [float(sample.timestep) for sample in samples]
    timesteps = to_device(torch.tensor([times[number] for number in numbers]), latents.device)
    extra = [row.sample.extra_channels for row in rows if row.sample.extra_channels is not None]
    return Evaluation(
        list(rows),
        latents,
        timesteps,
        prompts=own_prompts(rows, constants),
        extra_channels=constants.of("extra channels", torch.cat, extra) if extra else None,
        constants=constants,
    )


def _scaled(samples: Sequence[Sample]) -> Sequence[torch.Tensor]:
    """Each sample's latents, (1, channels, h, w), as the denoiser takes them."""
    scales, latents = [], []
    for sample in samples:
        assert sample.latents is not None
        step = sample.table.get(sample.evaluation)
        scales.append(1.0 if step is None else step.scale)
        own = step is None
        latents.append(sample.scheduler.scale_model_input(sample.latents, sample.timestep) if own else sample.latents)
    if all(scale == 1.0 for scale in scales):
        return latents
    together = torch.cat(latents)
    factors = to_device(torch.tensor(scales), together.device).view(-1, 1, 1, 1)
    return list((together * factors).to(together.dtype).split(1))


def guide(outputs: Sequence[torch.Tensor], request: Request) -> torch.Tensor:
    """Classifier-free guidance (Ho and Salimans 2022) of a sample's rows, each (1, channels, h, w), the unconditional
    one first; with rescale as Lin et al. 2023, section 3.4. A single row is returned as it is."""
    if len(outputs) == 1:
        return outputs[0]
    unconditional, conditional = outputs
    guided = unconditional + request.guidance_scale * (conditional - unconditional)
    if request.guidance_rescale > 0:
        guided = rescale_noise_cfg(guided, conditional, guidance_rescale=request.guidance_rescale)
    return guided


def advance(sample: Sample, outputs: Sequence[torch.Tensor], want_estimate: bool) -> torch.Tensor | None:
    """Take one evaluation's step by the sample's own scheduler object, given what the denoiser made of each row.

    Returns the estimate of the clean latents, (1, channels, h, w), where it is wanted.
    """
    assert sample.generator is not None
    output = guide(outputs, sample.request)
    scheduler, generator = copy_scheduler(sample.scheduler), sample.generator.clone_state()
    arguments = step_arguments(scheduler, generator, sample.request.eta)
    result = scheduler.step(output, sample.timestep, sample.latents, **arguments)
    clean = partial(clean_estimate, sample, result, output) if want_estimate else None
    return commit(sample, Stepped(scheduler, generator, result.prev_sample, clean))


def commit(sample: Sample, stepped: Stepped) -> torch.Tensor | None:
    """Give a sample what its step came to: scheduler, generator and latents change together, or not at all.

    Returns the estimate of the clean latents as its task makes it, where there is one.
    """
    before = sample.scheduler, sample.generator, sample.latents
    sample.scheduler, sample.generator = stepped.scheduler, stepped.generator
    try:
        estimate = _estimate(sample, stepped.clean) if stepped.clean else None
        sample.latents = sample.task.after_evaluation(sample, stepped.latents)
    except BaseException:
        sample.scheduler, sample.generator, sample.latents = before
        raise
    sample.evaluation += 1
    return estimate


def _estimate(sample: Sample, clean: Callable[[], torch.Tensor]) -> torch.Tensor | None:
    try:
        return sample.task.estimate(sample, clean())
    except Exception as error:  # of a scheduler from elsewhere: the picture does not depend on it
        log.warning("no preview under %s: %r", type(sample.scheduler).__name__, error)
        return None


def copy_scheduler(scheduler: Any) -> Any:
    """A scheduler of its own: schedulers change their attributes, and lists in place, but never tensors."""
    copied = copy.copy(scheduler)
    for name, value in vars(scheduler).items():
        if isinstance(value, list):
            setattr(copied, name, value.copy())
    return copied


def begin_at(scheduler: Any, first: int) -> Any:
    """A scheduler of its own that begins with this evaluation."""
    begun = copy_scheduler(scheduler)
    if hasattr(begun, "set_begin_index"):
        begun.set_begin_index(first)  # else schedulers look for it, and take the second of two equal timesteps
    return begun


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
