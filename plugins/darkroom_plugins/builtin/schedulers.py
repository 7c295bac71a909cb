"""Noise schedulers: one entry each, a name and a diffusers class."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from darkroom_plugins import hookimpl
from darkroom_plugins.contract import SchedulerEntry

darkroom_api_version = 1

# Constructor arguments that clients may set, if the class has them; None: typed as the class annotates it.
OPTIONS: Mapping[str, Any] = {
    "solver_order": Annotated[int, Field(ge=1, le=3)],
    "predictor_order": Annotated[int, Field(ge=1, le=3)],
    "corrector_order": Annotated[int, Field(ge=1, le=3)],
    "solver_type": None,
    "predict_x0": bool,
    "lower_order_final": bool,
    "euler_at_final": bool,
    "use_lu_lambdas": bool,
    "final_sigmas_type": None,
    "skip_prk_steps": bool,
    "set_alpha_to_one": bool,
    "steps_offset": Annotated[int, Field(ge=0, le=1)],
    "rescale_betas_zero_snr": bool,
    "original_inference_steps": Annotated[int, Field(ge=1, le=1000)],
}


# Defaults for latent diffusion: latents are not bounded by 1, so no clipping; models with PNDM skip its Runge-Kutta
# steps.
LATENT_DEFAULTS: Mapping[str, Any] = {"clip_sample": False, "skip_prk_steps": True}


# Classes that have `rescale_betas_zero_snr`, which models are checked for without importing the classes.
ZERO_SNR = {
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
}


class DiffusersEntry(SchedulerEntry):
    """The entry of a diffusers class. The class, and what its constructor's signature tells, are read at first use."""

    def __init__(self, name: str, class_name: str, description: str, *aliases: str, **given: Any) -> None:
        """`given` are further fields of SchedulerEntry."""
        vars(self).update(name=name, _class_name=class_name, description=description, aliases=aliases, options={})
        vars(self).update(given)

    @property
    def class_name(self) -> str:
        """The name of the class."""
        return vars(self)["_class_name"]  # type: ignore[no-any-return]

    @property
    def takes_zero_snr(self) -> bool:
        """Whether the class has `rescale_betas_zero_snr`."""
        return self.class_name in ZERO_SNR

    @cached_property
    def scheduler(self) -> type[Any]:
        """The class."""
        import diffusers

        return getattr(diffusers, self.class_name)  # type: ignore[no-any-return]

    @cached_property
    def _arguments(self) -> Mapping[str, Any]:
        return inspect.signature(self.scheduler.__init__).parameters

    @cached_property
    def defaults(self) -> Mapping[str, Any]:
        """Those of LATENT_DEFAULTS that it takes."""
        return {name: value for name, value in LATENT_DEFAULTS.items() if name in self._arguments}

    @cached_property
    def sigma_schedules(self) -> tuple[str, ...]:
        """Those that it can use."""
        found = [s for s in ("karras", "exponential", "beta") if f"use_{s}_sigmas" in self._arguments]
        return ("default", *found) if found else ()

    @cached_property
    def timestep_spacings(self) -> tuple[str, ...]:
        """Those that it can use."""
        return ("linspace", "leading", "trailing") if "timestep_spacing" in self._arguments else ()

    @cached_property
    def takes_eta(self) -> bool:
        """Whether its step does."""
        return "eta" in inspect.signature(self.scheduler.step).parameters

    @cached_property
    def Parameters(self) -> type[BaseModel] | None:  # the field's name
        """Of OPTIONS those that it takes and are not fixed."""
        return _parameters(self.scheduler, [o for o in OPTIONS if o in self._arguments and o not in self.options])


class LmsEntry(DiffusersEntry):
    """That of `lms`."""

    @cached_property
    def scheduler(self) -> type[Any]:
        from darkroom_plugins.builtin.lms import LMSDiscreteScheduler

        return LMSDiscreteScheduler


def _parameters(scheduler: type[Any], options: Sequence[str]) -> type[BaseModel] | None:
    if not options:
        return None
    hints = typing.get_type_hints(scheduler.__init__)
    fields: dict[str, Any] = {o: ((OPTIONS[o] or hints[o]) | None, None) for o in options}
    if fields.get("solver_type") == (str | None, None):
        fields["solver_type"] = (typing.Literal["bh1", "bh2"] | None, None)  # UniPC annotates it as str
    config = ConfigDict(extra="forbid", strict=True)
    return create_model(f"{scheduler.__name__}Options", __config__=config, **fields)


MULTISTEP = "DPMSolverMultistepScheduler"
ENTRIES = (
    DiffusersEntry("ddpm", "DDPMScheduler", "Ho et al. 2020: stochastic, the original; wants many steps."),
    DiffusersEntry("ddim", "DDIMScheduler", "Song et al. 2020: deterministic at eta 0."),
    DiffusersEntry("euler", "EulerDiscreteScheduler", "Karras et al. 2022, Euler's method: fast, deterministic."),
    DiffusersEntry(
        "euler-ancestral", "EulerAncestralDiscreteScheduler", "Euler with noise added at each step.", "euler_a"
    ),
    DiffusersEntry(
        "dpmpp-2m",
        MULTISTEP,
        "DPM-Solver++ of order 2: good in 20 steps.",
        "dpm++",
        "dpm++_2m",
        options={"algorithm_type": "dpmsolver++"},
    ),
    DiffusersEntry(
        "dpmpp-2m-sde",
        MULTISTEP,
        "DPM-Solver++ of order 2 with noise.",
        "dpm++_2m_sde",
        options={"algorithm_type": "sde-dpmsolver++"},
    ),
    DiffusersEntry(
        "dpmpp-sde",
        "DPMSolverSinglestepScheduler",
        "DPM-Solver++ in single steps with noise.",
        "dpm++_sde",
        options={"algorithm_type": "sde-dpmsolver++"},
    ),
    DiffusersEntry(
        "dpmpp-3m-sde",
        MULTISTEP,
        "DPM-Solver++ of order 3 with noise.",
        "dpm++_3m_sde",
        options={"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
    ),
    DiffusersEntry(
        "unipc", "UniPCMultistepScheduler", "Zhao et al. 2023: a predictor and corrector; good in 10 steps."
    ),
    DiffusersEntry("pndm", "PNDMScheduler", "Liu et al. 2022: the first default of Stable Diffusion.", "plms"),
    DiffusersEntry("heun", "HeunDiscreteScheduler", "Karras et al. 2022, Heun's method: two evaluations a step."),
    DiffusersEntry("kdpm2", "KDPM2DiscreteScheduler", "DPM2 as in k-diffusion: two evaluations a step.", "dpm2"),
    DiffusersEntry(
        "kdpm2-ancestral", "KDPM2AncestralDiscreteScheduler", "DPM2 with noise added at each step.", "dpm2_a"
    ),
    LmsEntry("lms", "LMSDiscreteScheduler", "Linear multistep, as in k-diffusion."),
    DiffusersEntry("deis", "DEISMultistepScheduler", "Zhang and Chen 2022: exponential integrator."),
    DiffusersEntry(
        "ipndm", "IPNDMScheduler", "Zhang and Chen 2022: improved PNDM; for models trained on its time scale."
    ),
    DiffusersEntry("sa-solver", "SASolverScheduler", "Xue et al. 2023: stochastic Adams."),
    DiffusersEntry(
        "lcm", "LCMScheduler", "Luo et al. 2023: for latent consistency models, 2 to 8 steps.", max_steps=50
    ),
    DiffusersEntry("tcd", "TCDScheduler", "Zheng et al. 2024: for trajectory consistency models.", max_steps=50),
)


@hookimpl
def darkroom_schedulers() -> Sequence[SchedulerEntry]:
    return ENTRIES
