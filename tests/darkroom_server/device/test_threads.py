"""Only the engine's thread has a team of OpenMP."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support import RunningServer


@pytest.fixture
def two_threads() -> Iterator[None]:
    """What threads that are new to torch have."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_only_the_engine_has_several_threads(tiny_model: Path) -> None:
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}]) as server:
        server.generate(prompt="a fox", num_inference_steps=2)  # which loads the model
        store, images = server.app.residency, server.app.images
        for pool in (store._loader, store._leaver, images._encoders, images._readers, images._planner):
            assert [pool.submit(torch.get_num_threads).result() for _ in range(4)] == [1] * 4
        assert server.run(server.app.engine.call(torch.get_num_threads)) == 2
