"""The number of threads that compute, chosen by a tuner with a clock of the test's own."""

from collections.abc import Callable
from functools import partial
from operator import truediv

from darkroom_server.device.thread_tuner import LONGEST_PAUSE, ThreadTuner


class Machine:
    """Evaluations on it take as long as `seconds` says for a number of threads, of which each runs for a `share`."""

    def __init__(self, most: int, seconds: Callable[[int], float], adaptive: bool = True, share: float = 1.0) -> None:
        self.now, self.ran, self.seconds, self.share = 0.0, 0.0, seconds, share
        self.threads: list[int] = []  # of each evaluation
        self.tuner = ThreadTuner(most, self.threads.append, adaptive, lambda: self.now, lambda: self.ran)

    def run(self, evaluations: int, kind: str = "kind", fixed: bool = False) -> list[int]:
        """The numbers of threads of these evaluations."""
        before = len(self.threads)
        for _ in range(evaluations):
            with self.tuner.evaluation(kind, fixed):
                seconds = self.seconds(self.threads[-1])
                self.now, self.ran = self.now + seconds, self.ran + self.share * seconds
        return self.threads[before:]


def test_all_threads_stay_where_they_are_fastest() -> None:
    machine = Machine(8, lambda threads: 1 / threads)
    assert machine.run(10)[-4:] == [8] * 4
    machine.run(10_000)
    assert machine.threads.count(8) / len(machine.threads) > 0.95


def test_the_first_pictures_of_a_kind_have_all_threads() -> None:
    for seconds in (0.01, 1.0, 100.0):
        machine = Machine(2, partial(truediv, seconds))
        assert machine.run(20, "one size") == machine.run(20, "another") == [2] * 20


def test_one_thread_where_others_only_wait() -> None:
    machine = Machine(16, lambda threads: 0.1 * threads)
    machine.run(1000)
    assert machine.run(1000).count(1) > 950


def test_a_busy_machine_is_noticed_at_once_and_more_threads_are_not_tried_on_it() -> None:
    machine = Machine(2, lambda threads: 20.0 if threads == 2 else 0.2, share=0.05)
    assert machine.run(10) == [2] + [2, 1] + [1] * 7
    machine.now += 100 * LONGEST_PAUSE
    assert machine.run(50) + machine.run(50, "another") == [1] * 100
    machine.seconds, machine.share = lambda threads: 1 / threads, 1.0
    assert machine.run(1000)[-1] == 2


def test_as_many_as_are_fastest() -> None:
    machine = Machine(16, lambda threads: abs(threads - 4) + 1.0)
    machine.run(1000)
    assert machine.run(100).count(4) > 90


def test_a_machine_that_becomes_busy_and_free_again() -> None:
    machine = Machine(2, lambda threads: 1 / threads)
    assert machine.run(500)[-1] == 2
    machine.seconds = lambda threads: 5.0 if threads == 2 else 1.0
    machine.run(50)
    assert machine.run(50).count(1) > 45
    machine.seconds = lambda threads: 1 / threads
    machine.run(int(2 * LONGEST_PAUSE))
    assert machine.run(50).count(2) > 40


def test_kinds_are_measured_by_themselves() -> None:
    machine = Machine(4, lambda threads: 1 / threads)
    machine.run(100, "large")
    machine.seconds = lambda threads: float(threads)
    machine.run(500, "small")
    assert machine.run(50, "small").count(1) > 45
    machine.seconds = lambda threads: 1 / threads
    assert machine.run(50, "large").count(4) > 45


def test_fixed_evaluations_have_all_threads() -> None:
    machine = Machine(2, lambda threads: float(threads))
    machine.run(100)
    assert machine.run(20, fixed=True) == [2] * 20
    assert machine.run(20).count(1) > 15


def test_a_configured_number_stays() -> None:
    assert set(Machine(3, lambda threads: float(threads), adaptive=False).run(100)) == {3}
