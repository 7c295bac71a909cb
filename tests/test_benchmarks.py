"""The benchmark measures what is there. That it runs is seen by `make bench BENCH=--smoke`, which takes minutes."""

import pytest

from tests.benchmarks.clocks import STAGES, find


@pytest.mark.parametrize("target", [target for targets in STAGES.values() for target in targets])
def test_stages_are_functions_of_the_server(target: str) -> None:
    owner, name = find(target)
    assert callable(getattr(owner, name))
