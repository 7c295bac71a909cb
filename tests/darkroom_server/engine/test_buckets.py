"""Row buckets find out which numbers of rows keep a row's bytes."""

import time
from collections.abc import Sequence

import pytest
import torch

from darkroom_server.engine.buckets import Buckets, same_bytes


class Kernels:
    """Evaluates numbers; what it adds in the last bits depends on the number of rows, `by_place` on the place."""

    def __init__(self, classes: Sequence[int] = (), by_place: bool = False, by_company: bool = False) -> None:
        self.classes, self.by_place, self.by_company = classes, by_place, by_company
        self.counts: list[int] = []

    def __call__(self, rows: Sequence[float]) -> list[torch.Tensor]:
        self.counts.append(len(rows))
        rounding = float(sum(len(rows) >= start for start in self.classes))
        outputs = []
        for place, row in enumerate(rows):
            own = rounding + place * self.by_place + sum(rows) * self.by_company
            outputs.append(torch.tensor([[row + own / 1024]]))
        return outputs


def values(outputs: Sequence[torch.Tensor]) -> list[float]:
    return [float(output) for output in outputs]


def test_all_rows_of_one_class_share_a_batch() -> None:
    buckets, kernels = Buckets(), Kernels(classes=(2,))
    alone = [values(buckets.run("kind", kernels, [float(row)], 2))[0] for row in range(9)]
    assert values(buckets.run("kind", kernels, [*map(float, range(9))], 2)) == alone
    kernels.counts.clear()
    assert values(buckets.run("kind", kernels, [*map(float, range(9))], 2)) == alone
    assert kernels.counts == [9]


def test_a_number_of_rows_of_another_class_is_divided() -> None:
    buckets, kernels = Buckets(), Kernels(classes=(2, 6))
    alone = [values(buckets.run("kind", kernels, [float(row)], 2))[0] for row in range(9)]
    assert values(buckets.run("kind", kernels, [*map(float, range(9))], 2)) == alone
    for _ in range(3):
        buckets.run("kind", kernels, [*map(float, range(9))], 2)
    kernels.counts.clear()
    assert values(buckets.run("kind", kernels, [*map(float, range(9))], 2)) == alone
    assert max(kernels.counts) < 6
    assert sum(kernels.counts) <= 10  # nothing is evaluated twice any more


def test_the_largest_number_of_rows_of_a_class_is_found() -> None:
    buckets, kernels = Buckets(), Kernels(classes=(2, 16))
    for rows in (32, 32, 26, 30, 26, 28, 30):
        buckets.run("kind", kernels, [*map(float, range(rows))], 2)
    kernels.counts.clear()
    buckets.run("kind", kernels, [*map(float, range(30))], 2)
    assert kernels.counts == [15, 15]


def test_a_number_of_rows_is_compared_with_the_largest_that_is_known() -> None:
    buckets, kernels = Buckets(), Kernels()
    for rows in (2, 16):
        buckets.run("kind", kernels, [*map(float, range(rows))], 2)
    kernels.counts.clear()
    buckets.run("kind", kernels, [*map(float, range(18))], 2)
    assert kernels.counts == [18, 16, 2]


def test_parts_of_other_classes_have_the_numbers_of_rows_that_are_asked_for() -> None:
    buckets, kernels, sizes = Buckets(), Kernels(classes=(2, 8)), (1, 2, 4, 8)
    for rows in (8, 5, 6, 7, 8):
        kernels.counts.clear()
        buckets.run("kind", kernels, [*map(float, range(rows))], 2, sizes)
        assert {*kernels.counts} <= {*sizes}


def test_a_busy_machine_does_not_make_evaluations_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("darkroom_server.engine.buckets.LONG_SECONDS", 0.05)
    buckets, kernels = Buckets(), Kernels()

    def waiting(rows: Sequence[float]) -> list[torch.Tensor]:
        time.sleep(0.06)
        return kernels(rows)

    buckets.run("kind", waiting, [1.0, 2.0], 2)
    kernels.counts.clear()
    buckets.run("kind", kernels, [*map(float, range(9))], 2)
    assert max(kernels.counts) == 9


@pytest.mark.parametrize("kernels", [Kernels(by_place=True), Kernels(by_company=True)])
def test_rows_that_their_company_changes_are_evaluated_alone(kernels: Kernels) -> None:
    buckets = Buckets()
    alone = [values(buckets.run("one", kernels, [float(row)], 4))[0] for row in (1, 2, 3)]
    assert values(buckets.run("other", kernels, [1.0, 2.0, 3.0], 4)) == alone
    assert values(buckets.run("other", kernels, [3.0, 2.0], 4)) == [alone[2], alone[1]]


def test_a_bucket_of_one_row_is_the_row_alone() -> None:
    buckets, kernels = Buckets(), Kernels(classes=(2,))
    for _ in range(2):
        assert values(buckets.run("kind", kernels, [1.0, 2.0, 3.0], 1)) == [1.0, 2.0, 3.0]
    kernels.counts.clear()
    buckets.run("kind", kernels, [1.0, 2.0], 1)
    assert set(kernels.counts) == {1}


def test_kinds_are_told_apart() -> None:
    buckets, kernels = Buckets(), Kernels(by_place=True)
    buckets.run("bad", kernels, [1.0, 2.0], 2)
    good = Kernels()
    buckets.run("good", good, [1.0, 2.0], 2)
    good.counts.clear()
    buckets.run("good", good, [1.0, 2.0], 2)
    assert good.counts == [2]


def test_bytes_are_compared_not_values() -> None:
    nan, zero = torch.tensor([float("nan")]), torch.tensor([0.0])
    assert same_bytes(nan, nan.clone())
    assert not same_bytes(zero, -zero)
