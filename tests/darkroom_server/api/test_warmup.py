"""Which models run their first steps while they load. What those do is tested with the compiler, and in test_gpu.py."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from darkroom_server.api.warmup import wants_warm_up


@pytest.mark.parametrize(
    ("device", "compile_", "offload", "wanted"),
    [
        ("cpu", False, "none", False),
        ("cpu", True, "none", False),
        ("cpu", "load", "none", True),
        ("cuda:1", False, "none", True),
        ("cuda", True, "none", True),
        ("cuda", False, "model", False),
        ("cuda", "load", "model", True),
    ],
)
def test_on_cuda_always(device: str, compile_: bool | str, offload: str, wanted: bool) -> None:
    settings = SimpleNamespace(compile=compile_, offload=offload)
    model: Any = SimpleNamespace(settings=settings, family=SimpleNamespace(device=torch.device(device)))
    assert wants_warm_up(model) is wanted
