"""Helpers over diffusers' scheduler objects."""

from __future__ import annotations

import copy
import inspect
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def copy_scheduler(scheduler: Any) -> Any:
    """A copy that shares tensors: schedulers change attributes and lists in place, never tensors."""
    copied = copy.copy(scheduler)
    for name, value in vars(scheduler).items():
        if isinstance(value, list):
            setattr(copied, name, value.copy())
    return copied


def begin_at(scheduler: Any, first: int) -> Any:
    """A copy that begins at this evaluation."""
    begun = copy_scheduler(scheduler)
    if hasattr(begun, "set_begin_index"):
        begun.set_begin_index(first)  # else schedulers search by timestep, and take the second of two equal ones
    return begun


def step_arguments(scheduler: Any, generator: torch.Generator, eta: float) -> dict[str, Any]:
    """The keyword arguments for the scheduler's `step`, those that its signature has."""
    arguments = _step_arguments(scheduler.__class__)
    return {name: value for name, value in (("generator", generator), ("eta", eta)) if name in arguments}


@lru_cache
def _step_arguments(scheduler: Any) -> frozenset[str]:
    return frozenset(inspect.signature(scheduler.step).parameters)


def clean_estimate(
    scheduler: Any, timestep: torch.Tensor, latents: torch.Tensor, result: Any, output: torch.Tensor
) -> torch.Tensor:
    """The clean latents (x_0) predicted at a step: from the scheduler's result if it has them, else from x_t and the
    output. `scheduler` is in its state after the step, `latents` are those before it."""
    for name in ("pred_original_sample", "denoised"):
        if (estimate := getattr(result, name, None)) is not None:
            return estimate.to(output.dtype)  # type: ignore[no-any-return]  # some schedulers compute in float32
    alpha, sigma = _noise_levels(scheduler, timestep)
    prediction_type = scheduler.config.get("prediction_type", "epsilon")
    if prediction_type == "sample":
        return output
    if prediction_type == "v_prediction":
        return alpha * latents - sigma * output  # type: ignore[no-any-return]
    return (latents - sigma * output) / max(alpha, 1e-3)  # type: ignore[no-any-return]  # IPNDM begins at 0


def _noise_levels(scheduler: Any, timestep: torch.Tensor) -> tuple[Any, Any]:
    """alpha_t and sigma_t in x_t = alpha_t x_0 + sigma_t noise, at the scheduler's latest evaluation."""
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):  # DPM-Solver, UniPC, DEIS, SA-Solver
        return scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[scheduler.step_index - 1])  # type: ignore[no-any-return]
    if hasattr(scheduler, "alphas_cumprod"):  # PNDM, TCD
        cumulative = scheduler.alphas_cumprod[int(timestep)]
        return cumulative.sqrt(), (1 - cumulative).sqrt()
    index = scheduler.step_index - 1  # IPNDM
    return scheduler.alphas[index], scheduler.betas[index]


def noise_level(scheduler: Any, evaluation: int) -> float | None:
    """The sigma of an evaluation; None for schedulers without sigmas."""
    sigmas = getattr(scheduler, "sigmas", None)
    return float(sigmas[evaluation]) if sigmas is not None and evaluation < len(sigmas) else None
