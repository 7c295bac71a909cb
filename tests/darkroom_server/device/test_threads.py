"""Only the engine's thread has a team of OpenMP."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from darkroom_plugins import Conditioner, Finisher, hookimpl
from darkroom_plugins.builtin.tasks.txt2img import Txt2Img
from tests.support import RunningServer

SEEN: dict[str, int] = {}  # how many threads torch has, by the names of threads


def see() -> None:
    SEEN[threading.current_thread().name.rpartition("_")[0] or threading.current_thread().name] = (
        torch.get_num_threads()
    )


class Seeing(Txt2Img):
    name = "seeing"

    def canvas(self, request: Any, parameters: Any) -> Any:
        see()
        return super().canvas(request, parameters)

    def begin(self, sample: Any, parameters: Any) -> None:
        see()
        super().begin(sample, parameters)


class SeeingPrompts(Conditioner):
    name = "seeing"

    def read_prompt(self, pieces: Any, request: Any, assets: Any, parameters: Any) -> Any:
        see()
        return pieces


class SeeingPictures(Finisher):
    name = "seeing"

    def finish(self, picture: Any, request: Any, parameters: Any) -> Any:
        see()
        return picture


class Plugin:
    darkroom_api_version = 1

    @hookimpl
    def darkroom_tasks(self) -> list[Any]:
        return [Seeing()]

    @hookimpl
    def darkroom_conditioners(self) -> list[Any]:
        return [SeeingPrompts()]

    @hookimpl
    def darkroom_finishers(self) -> list[Any]:
        return [SeeingPictures()]


@pytest.fixture
def two_threads() -> Iterator[None]:
    """What threads that are new to torch have."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_only_the_engine_has_several_threads(tiny_model: Path) -> None:
    """Those of the residency manager: see test_residency_manager.py."""
    SEEN.clear()
    with RunningServer(
        plugins={"seeing": Plugin()}, models=[{"name": "tiny", "path": tiny_model}], threads=2
    ) as server:
        server.generate(task="seeing", prompt="a fox", num_inference_steps=2)
    assert SEEN == {"reader": 1, "planner": 1, "engine": 2, "encoder": 1}
