"""Packed convolutions compute what plain ones do."""

import copy

import pytest
import torch
from torch import nn

from darkroom_server.packing import MAX_CHANNELS, pack


@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2}, {"padding": 0}, {"dilation": 2}, {"groups": 4}, {"bias": False}],
    ids=str,
)
def test_equals_plain_ones(options: dict[str, int]) -> None:
    plain = nn.Conv2d(8, 16, **{"kernel_size": 3, "padding": 1} | options).requires_grad_(False)  # type: ignore[arg-type]
    packed = copy.deepcopy(plain)
    pack(packed)
    assert "forward" in vars(packed)
    for rows, edge in ((1, 8), (3, 24)):
        pictures = torch.randn(rows, 8, edge, edge)
        assert torch.allclose(packed(pictures), plain(pictures), atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, MAX_CHANNELS + 1, 3),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(8, 8, 3, padding="same"),
        nn.Conv2d(8, 8, 3, dtype=torch.bfloat16),
        nn.Conv2d(8, 8, 3, device="meta"),
    ],
    ids=["large", "point", "circular", "same", "bfloat16", "elsewhere"],
)
def test_others_stay_as_they_are(layer: nn.Conv2d) -> None:
    pack(layer)
    assert "forward" not in vars(layer)
