"""Helpers over diffusers' scheduler objects."""

from __future__ import annotations

import copy
import inspect
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


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


def clean_estimate(
    scheduler: Any, timestep: torch.Tensor, latents: torch.Tensor, result: Any, output: torch.Tensor
) -> torch.Tensor:
    """The clean latents that a step predicts (x0), from the scheduler where it says, else from x_t and the output. The
    scheduler is after the step, the latents are those before it."""
    for name in ("pred_original_sample", "denoised"):
        if (estimate := getattr(result, name, None)) is not None:
            return estimate.to(output.dtype)  # type: ignore[no-any-return]  # some compute in float32
    alpha, sigma = _noise_levels(scheduler, timestep)
    prediction_type = scheduler.config.get("prediction_type", "epsilon")
    if prediction_type == "sample":
        return output
    if prediction_type == "v_prediction":
        return alpha * latents - sigma * output  # type: ignore[no-any-return]
    return (latents - sigma * output) / max(alpha, 1e-3)  # type: ignore[no-any-return]  # IPNDM begins at 0


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
