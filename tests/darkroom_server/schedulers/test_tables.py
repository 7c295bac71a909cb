"""Steps by table are the steps of diffusers' own scheduler objects."""

import asyncio
import copy
import functools
import itertools
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import pytest
import torch

from darkroom_plugins.builtin.schedulers import ENTRIES
from darkroom_plugins.builtin.tasks.txt2img import Txt2Img
from darkroom_plugins.contract import SchedulerEntry
from darkroom_plugins.errors import DarkroomError, PluginFailed
from darkroom_plugins.request import OutputOptions, PreviewOptions, Request, SchedulerChoice
from darkroom_plugins.sample import Sample
from darkroom_server.engine.recovery import Recovery
from darkroom_server.engine.step import StepInput, advance
from darkroom_server.schedulers.scheduler import step_arguments
from darkroom_server.schedulers.tables import NotLinear, Step, Table, Tables, make_table, tabulate

SHAPE = (1, 4, 5, 3)
# Between the latents, relative to the largest value that a step begins or ends with. Some objects multiply by float32,
# and in single precision Heun's own rounding comes to 1.2e-5 where it takes two steps for the whole way.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-5, torch.float16: 1e-2}
SD = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
BY_NAME = {entry.name: entry for entry in ENTRIES}
# kdpm2: to build one takes diffusers half a second, as its constructor sets all training timesteps.
EACH = [
    pytest.param(entry, id=entry.name, marks=[pytest.mark.slow] if entry.name.startswith("kdpm2") else [])
    for entry in ENTRIES
]
REQUEST = Request(
    request_id="",
    task="txt2img",
    model="",
    prompt="",
    negative_prompt=None,
    width=8,
    height=8,
    num_images=1,
    num_inference_steps=10,
    guidance_scale=1.0,
    guidance_rescale=0.0,
    clip_skip=0,
    eta=0.0,
    seed=7,
    scheduler=SchedulerChoice(name=""),
    preview=PreviewOptions(mode="off"),
    output=OutputOptions(),
)
NONE: Any = None  # what a step has no need of


@dataclass
class Case:
    """A scheduler as it may be asked for."""

    choice: SchedulerChoice
    steps: int = 7
    skipped: int = 0  # steps, as by a strength
    eta: float = 0.0
    config: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64

    @functools.cached_property
    def scheduler(self) -> Any:
        """The object, ready for its first evaluation."""
        entry = BY_NAME[self.choice.name]
        config = {
            k: v for k, v in {**SD, **self.config}.items() if k in entry.scheduler._get_init_keys(entry.scheduler)
        }
        scheduler = entry.build(config, self.choice)
        scheduler.set_timesteps(self.steps)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(self.skipped * scheduler.order)
        return scheduler

    @property
    def first(self) -> int:
        return self.skipped * int(self.scheduler.order)

    def sample(self) -> Sample:
        """A sample under it."""
        sample = Sample(
            request=replace(REQUEST, eta=self.eta),
            index=0,
            model=NONE,
            task=Txt2Img(),
            conditioners=(),
            adapters=(),
            scheduler=copy.deepcopy(self.scheduler),
            timesteps=self.scheduler.timesteps,
            canvas=NONE,
            assets=NONE,
            first=self.first,
            evaluation=self.first,
            generator=torch.Generator().manual_seed(5),
        )
        sample.latents = random(0, self.dtype) * self.scheduler.init_noise_sigma
        return sample

    @functools.cached_property
    def table(self) -> Table:
        return Table(self.first, tuple(tabulate(self.scheduler, self.first, self.eta)))


STRICT = Recovery(lambda: False)


def step_input(sample: Sample, coefficients: Step | None, output: torch.Tensor, want_estimate: bool) -> StepInput:
    return StepInput(sample, BY_NAME["ddim"], coefficients, [output], want_estimate)


def random(seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def cases(entry: SchedulerEntry) -> Iterator[Case]:
    plain = SchedulerChoice(name=entry.name)
    for steps in (1, 2, 5, 10, 25):
        yield Case(plain, steps)
        yield Case(plain, steps, skipped=steps * 3 // 10, dtype=torch.float32)
    for schedule in entry.sigma_schedules:
        yield Case(replace(plain, sigma_schedule=typing.cast("Any", schedule)))
    for spacing in entry.timestep_spacings:
        yield Case(replace(plain, timestep_spacing=typing.cast("Any", spacing)))
    for prediction in ("v_prediction", "sample"):
        yield Case(plain, config={"prediction_type": prediction})
    for options in options_of(entry):
        yield Case(replace(plain, options=options), steps=14)  # PNDM begins with 12 Runge-Kutta evaluations
    if entry.takes_eta:
        yield Case(plain, eta=0.7)


def options_of(entry: SchedulerEntry) -> Iterator[Any]:
    if entry.Parameters is None:
        return
    for name, info in entry.Parameters.model_fields.items():
        kind = typing.get_args(info.annotation)[0]  # of `kind | None`
        if kind is bool:
            values: Sequence[Any] = (False, True)
        elif typing.get_origin(kind) is typing.Literal:
            values = typing.get_args(kind)
        else:
            values = {"steps_offset": (0, 1), "original_inference_steps": (40,)}.get(name, (1, 2, 3))
        yield from (entry.Parameters(**{name: value}) for value in values)


@dataclass
class Course:
    """How a sample goes under the object's own steps."""

    case: Case
    latents: list[torch.Tensor]  # before each evaluation, and at the end
    estimates: list[torch.Tensor]
    sample: Sample  # at the end


def course(case: Case) -> Course | None:
    """None where diffusers refuses the case, or divides by zero."""
    try:
        sample = case.sample()
        course = Course(case, [sample.latents], [], sample)
        while not sample.done:
            sample.scheduler.scale_model_input(sample.latents, sample.timestep)
            (estimate,) = advance([step_input(sample, None, random(sample.evaluation + 1, case.dtype), True)], STRICT)
            if isinstance(estimate, DarkroomError):
                return None
            assert estimate is not None
            course.estimates.append(estimate)
            course.latents.append(sample.latents)
    except (ValueError, NotImplementedError):
        return None
    return course if all(each.isfinite().all() for each in course.latents) else None


def check(ours: torch.Tensor, theirs: torch.Tensor, before: torch.Tensor) -> float:
    """The error in tolerances."""
    assert ours.dtype == theirs.dtype
    largest = max(float(each.abs().max()) for each in (theirs, before))
    return float((ours - theirs).abs().max()) / largest / TOLERANCE[theirs.dtype]


Coefficients: TypeAlias = Callable[[Sample, Course], Step | None]


def by_table(sample: Sample, course: Course) -> Step | None:
    return course.case.table.at(sample.evaluation)


def run(samples: list[Sample], courses: list[Course], coefficients: Coefficients = by_table) -> float:
    """Take the samples to their ends, all that share a dtype in one batch; the largest error in tolerances."""
    worst = 0.0
    while going := [(s, c) for s, c in zip(samples, courses, strict=True) if not s.done]:
        dtype = going[0][1].case.dtype
        going = [each for each in going if each[1].case.dtype == dtype]
        at = [sample.evaluation - sample.first for sample, _ in going]
        outputs = [random(sample.evaluation + 1, dtype) for sample, _ in going]
        inputs = [
            step_input(sample, coefficients(sample, course), output, k % 3 > 0)
            for (sample, course), output, k in zip(going, outputs, at, strict=True)
        ]
        estimates = advance(inputs, STRICT)
        for (sample, course), k, estimate in zip(going, at, estimates, strict=True):
            before, after = course.latents[k : k + 2]
            worst = max(worst, check(sample.latents, after, before))
            if k % 3 > 0:
                assert isinstance(estimate, torch.Tensor)
                worst = max(worst, check(estimate, course.estimates[k], before))
            else:
                assert estimate is None
            assert worst < 1, (course.case, k)
            sample.latents = after  # so that errors do not add up, but in what the scheduler keeps
    return worst


@pytest.mark.parametrize("entry", EACH)
def test_equals_the_object(entry: SchedulerEntry) -> None:
    courses = [each for case in cases(entry) if (each := course(case))]
    samples = [each.case.sample() for each in courses]
    for sample, each in zip(samples, courses, strict=True):
        assert len(each.case.table.steps) == len(sample.timesteps) - sample.first, each.case
    assert run(samples, courses) < 1
    for sample, each in zip(samples, courses, strict=True):
        assert sample.generator.get_state().equal(each.sample.generator.get_state())
        kept = {k: v for k, v in vars(each.sample.scheduler).items() if isinstance(v, int | float | str | None)}
        assert kept.items() <= vars(sample.scheduler).items()


def test_either_way_at_any_step() -> None:
    """An object can go on at any step from where a table came to, and the other way round."""
    courses = [course(Case(SchedulerChoice(name=name), steps=9)) for name in BY_NAME]
    assert all(courses)
    samples = [each.case.sample() for each in courses]

    def some(sample: Sample, course: Course) -> Step | None:
        return by_table(sample, course) if (sample.evaluation + samples.index(sample)) % 3 else None

    assert run(samples, courses, some) < 1


def test_half_precision() -> None:
    courses = [course(Case(SchedulerChoice(name=name), steps=9, dtype=torch.float16)) for name in BY_NAME]
    courses = [each for each in courses if each and {t.dtype for t in each.latents} == {torch.float16}]
    assert len(courses) > 15
    samples = [each.case.sample() for each in courses]
    assert run(samples, courses) < 1


def test_no_table_of_what_is_not_linear() -> None:
    plain = SchedulerChoice(name="ddim")
    for config in ({"clip_sample": True}, {"clip_sample": False, "thresholding": True}):
        with pytest.raises(NotLinear, match="not linear"):
            Case(plain, config=config).table  # noqa: B018


def test_a_sample_that_fails_is_as_it_was() -> None:
    case = Case(SchedulerChoice(name="dpmpp-2m-sde"), dtype=torch.float32)
    samples = [case.sample() for _ in range(3)]
    latents, state = samples[1].latents, samples[1].generator.get_state()
    outputs = [random(1, torch.float32), torch.zeros(1, 4, 5, 4), random(1, torch.float32)]
    inputs = [
        step_input(sample, case.table.at(0), output, True) for sample, output in zip(samples, outputs, strict=True)
    ]
    estimates = advance(inputs, STRICT)
    assert isinstance(estimates[1], PluginFailed)
    assert samples[1].latents is latents
    assert samples[1].generator.get_state().equal(state)
    assert [sample.evaluation for sample in samples] == [1, 0, 1]
    assert samples[0].latents.equal(samples[2].latents)
    assert [sample.scheduler.step_index for sample in samples] == [1, None, 1]


def test_a_table_ends_before_what_is_not_linear() -> None:
    scheduler = Case(SchedulerChoice(name="ddim"), config={"clip_sample": True}).scheduler
    assert make_table(scheduler, 0, 0.0) == Table(0, ())


def test_tables_are_made_once_and_the_oldest_forgotten() -> None:
    async def ask() -> None:
        tables = Tables(capacity=9)
        first, second, third = (Case(SchedulerChoice(name="ddim"), steps=steps).scheduler for steps in (3, 4, 5))
        table, same = await asyncio.gather(tables.of(first, 0, 0.0), tables.of(first, 0, 0.0))
        assert same is table
        assert len(table.steps) == 3
        assert len((await tables.of(first, 1, 0.0)).steps) == 2
        await tables.of(second, 0, 0.0)
        assert await tables.of(first, 0, 0.0) is table
        await tables.of(third, 0, 0.0)
        await tables.of(second, 1, 0.0)
        assert await tables.of(first, 0, 0.0) is not table
        tables.close()

    asyncio.run(ask())


def test_who_leaves_takes_no_table_from_others() -> None:
    async def ask() -> None:
        tables, scheduler = Tables(), Case(SchedulerChoice(name="ddim"), steps=50).scheduler
        leaving, staying = (asyncio.create_task(tables.of(scheduler, 0, 0.0)) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        assert len((await staying).steps) == 50
        tables.close()

    asyncio.run(ask())


def combinations(entry: SchedulerEntry) -> Iterator[Case]:
    """Each option with each prediction type, and from the last training timestep on where there is a choice; in single
    precision."""
    spacing: Any = "trailing" if "trailing" in entry.timestep_spacings else None
    plain = SchedulerChoice(name=entry.name, timestep_spacing=spacing)
    choices = [plain, *(replace(plain, options=options) for options in options_of(entry))]
    choices += [replace(plain, sigma_schedule=typing.cast("Any", schedule)) for schedule in entry.sigma_schedules]
    choices += [replace(plain, timestep_spacing=typing.cast("Any", each)) for each in entry.timestep_spacings]
    for choice, prediction in itertools.product(choices, ("epsilon", "v_prediction", "sample")):
        yield Case(choice, 3, config={"prediction_type": prediction}, dtype=torch.float32)


def fault_of(case: Case) -> str | None:
    """Where the object's own steps end, as `Table.fault` has it; "refused" where diffusers does not even begin."""
    try:
        scheduler = copy.deepcopy(case.scheduler)
    except Exception:  # diffusers raises all kinds
        return "refused"
    latents = random(0, case.dtype) * scheduler.init_noise_sigma
    try:
        for index, timestep in enumerate(scheduler.timesteps):
            scheduler.scale_model_input(latents, timestep)
            arguments = step_arguments(scheduler, torch.Generator().manual_seed(index), 0.0)
            latents = scheduler.step(random(index + 1, case.dtype), timestep, latents, **arguments).prev_sample
    except (IndexError, AssertionError):
        return "fails"
    except Exception:
        return "refused"
    return None if latents.isfinite().all() else "divides by zero"


def known_otherwise(cases: Iterable[Case]) -> list[Any]:
    """Cases whose tables have another fault than the object's steps."""
    return [
        (case.choice, case.steps, dict(case.config), fault)
        for case in cases
        for fault in [fault_of(case)]
        if fault != "refused" and make_table(case.scheduler, 0, 0.0).fault != fault
    ]


@pytest.mark.parametrize("entry", EACH)
def test_what_divides_by_zero_is_known_before(entry: SchedulerEntry) -> None:
    assert known_otherwise(combinations(entry)) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("entry", EACH)
def test_what_cannot_take_its_most_steps_is_known_before(entry: SchedulerEntry) -> None:
    plain = SchedulerChoice(name=entry.name)
    choices = [plain, *(replace(plain, timestep_spacing=typing.cast("Any", each)) for each in entry.timestep_spacings)]
    choices += [replace(plain, sigma_schedule="beta")] if "beta" in entry.sigma_schedules else []
    most = functools.partial(Case, steps=entry.max_steps, config={"steps_offset": 1}, dtype=torch.float32)
    assert known_otherwise(map(most, choices)) == []
