"""Steps are counted as the progress bar of diffusers' pipelines counts them, for every scheduler."""

import ast
import inspect
import textwrap
from functools import lru_cache
from types import CodeType, SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from hypothesis import given
from hypothesis import strategies as st

from darkroom_plugins.builtin.schedulers import ENTRIES
from darkroom_plugins.latents import skipped_evaluations
from darkroom_plugins.request import SchedulerChoice
from darkroom_server.schedulers.schedule import Steps, count_steps
from tests.prompting import a_request
from tests.tiny import NOISE

NAMES = [entry.name for entry in ENTRIES]
STEPS = st.integers(1, 50)
STRENGTHS = st.just(1.0) | st.floats(0, 1, allow_subnormal=False)


@lru_cache
def built(name: str) -> Any:
    """A scheduler, once: some take half a second to make."""
    entries = {entry.name: entry for entry in ENTRIES}
    return entries[name].build(NOISE, SchedulerChoice(name=name))


def timed(name: str, num_inference_steps: int) -> Any:
    """A scheduler with its timesteps."""
    scheduler = built(name)
    scheduler.set_timesteps(num_inference_steps)
    return scheduler


@lru_cache
def progress_rule() -> tuple[CodeType, CodeType]:
    """From the source of the pipeline: how many evaluations come before the first step, and when the bar goes on."""
    source = textwrap.dedent(inspect.getsource(StableDiffusionImg2ImgPipeline.__call__))
    warmups, updates = [], []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "num_warmup_steps":
            warmups.append(node.value)
        if isinstance(node, ast.If) and "progress_bar.update()" in map(ast.unparse, node.body):
            updates.append(node.test)
    (warmup,), (update,) = warmups, updates
    first, second = (compile(ast.Expression(each), "pipeline", "eval") for each in (warmup, update))
    return first, second


def bar(scheduler: Any, num_inference_steps: int, strength: float) -> list[int]:
    """The evaluations after which diffusers' bar goes on, counted from the first that is run."""
    pipeline: Any = SimpleNamespace(scheduler=scheduler)
    timesteps, count = StableDiffusionImg2ImgPipeline.get_timesteps(pipeline, num_inference_steps, strength, "cpu")
    known = {"self": pipeline, "timesteps": timesteps, "num_inference_steps": count}
    warmup, update = progress_rule()
    known["num_warmup_steps"] = eval(warmup, known)
    return [i for i in range(len(timesteps)) if eval(update, {**known, "i": i})]


def counted(scheduler: Any, num_inference_steps: int, strength: float) -> Steps:
    request = a_request(num_inference_steps=num_inference_steps)
    first = skipped_evaluations(strength, request, scheduler.timesteps, scheduler.order)
    return count_steps(scheduler.timesteps, first, scheduler.order, num_inference_steps)


def check_division(steps: Steps) -> None:
    """Steps are numbered from 1, and each evaluation is of one of them, in order."""
    assert list(steps.ends.values()) == list(range(1, steps.count + 1))
    spans = [range(steps.begins[step], evaluation + 1) for evaluation, step in steps.ends.items()]
    assert all(spans)
    assert [i for span in spans for i in span] == list(range(steps.first, len(steps.timesteps)))


@pytest.mark.parametrize("name", NAMES)
@given(STEPS, STRENGTHS)
def test_steps_are_counted_as_the_progress_bar_does(name: str, num_inference_steps: int, strength: float) -> None:
    scheduler = timed(name, num_inference_steps)
    steps = counted(scheduler, num_inference_steps, strength)
    check_division(steps)
    if int(num_inference_steps * strength):
        assert [i - steps.first for i in steps.ends] == bar(scheduler, num_inference_steps, strength)
    else:
        assert (steps.count, steps.first) == (0, len(scheduler.timesteps))


@pytest.mark.parametrize("name", NAMES)
def test_without_a_strength_all_steps_are_counted(name: str) -> None:
    for num_inference_steps in range(1, 51):
        scheduler = timed(name, num_inference_steps)
        steps = count_steps(scheduler.timesteps, 0, scheduler.order, num_inference_steps)
        assert list(steps.ends) == bar(scheduler, num_inference_steps, 1.0)
        assert steps.count == num_inference_steps


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 3), STEPS)
def test_any_timesteps_are_divided(evaluations: int, first: int, order: int, num_inference_steps: int) -> None:
    """Those of a scheduler from elsewhere, which may evaluate as often as it likes."""
    check_division(count_steps(torch.arange(evaluations), min(first, evaluations), order, num_inference_steps))
