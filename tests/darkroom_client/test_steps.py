"""How many steps of a run are done."""

from darkroom_client.cli._steps import StepCount


def test_of_all_jobs_and_images() -> None:
    steps = StepCount(3, 2)
    assert (steps.done, steps.total, steps.of(0)) == (0, None, (0, None))
    steps.accept(0, 10)
    assert (steps.total, steps.of(0)) == (60, (0, 20))  # the others are expected to be as long
    for image, step in ((0, 1), (1, 1), (0, 2), (1, 4)):
        steps.step(0, image, step)
    assert (steps.done, steps.of(0)) == (6, (6, 20))
    steps.accept(1, 8)
    assert steps.total == 20 + 16 + 20


def test_a_failed_job_is_not_waited_for() -> None:
    steps = StepCount(2, 1)
    steps.give_up(0)
    assert steps.total is None
    steps.accept(1, 10)
    assert steps.total == 10
    steps.step(1, 0, 4)
    steps.give_up(1)
    assert (steps.done, steps.total) == (4, 4)


def test_a_job_that_begins_again_counts_once() -> None:
    steps = StepCount(1, 1)
    steps.accept(0, 10)
    for step in (1, 2, 3, 1):
        steps.step(0, 0, step)
    steps.accept(0, 10)
    assert (steps.done, steps.total) == (1, 10)
