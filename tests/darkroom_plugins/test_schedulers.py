"""Schedulers that are more than diffusers' class under a name."""

from typing import Any

import diffusers
import pytest
import torch

from darkroom_plugins.builtin.schedulers import ENTRIES
from darkroom_plugins.request import SchedulerChoice
from tests.darkroom_server.schedulers.test_tables import SD

LMS = next(entry for entry in ENTRIES if entry.name == "lms")


def run(scheduler: Any, steps: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, 4, 4, generator=generator)
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        output = scheduler.scale_model_input(latents, timestep) + torch.randn(latents.shape, generator=generator)
        latents = scheduler.step(output, timestep, latents).prev_sample
    return latents


def test_lms_integrates_once_for_a_schedule_and_steps_as_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, integrals = diffusers.LMSDiscreteScheduler, []
    integrate = plain.get_lms_coefficient
    config = {**SD, "beta_end": 0.0123}  # of no other test

    def counting(self: Any, *arguments: int) -> float:
        integrals.append(arguments)
        return integrate(self, *arguments)

    for steps, choice in ((5, "default"), (7, "default"), (5, "karras")):
        made = [LMS.build(config, SchedulerChoice(name="lms", sigma_schedule=choice)) for _ in range(2)]
        expected = run(plain.from_config(made[0].config), steps)
        with monkeypatch.context() as patched:
            patched.setattr(plain, "get_lms_coefficient", counting)
            for scheduler in made:
                assert torch.equal(run(scheduler, steps), expected)
        assert len(integrals) == len(set(integrals)) == 1 + 2 + 3 + 4 * (steps - 3)
        integrals.clear()
