"""The cost of decoding, foretold from two sizes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch.utils.flop_counter import FlopCounterMode

from darkroom_server.networks.decode_cost import DecodeCosts

SIZES = (16, 32, 64)


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    with torch.device("meta"):
        return AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=32,
        )


def family(vae: AutoencoderKL) -> Any:
    return SimpleNamespace(meta_components={"vae": vae}, dtype_of=lambda name: torch.float32)


def operations(vae: AutoencoderKL, high: int, wide: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        vae.decode(torch.empty(1, 4, high, wide, device="meta"))
    return counter.get_total_flops()


@pytest.mark.parametrize(("high", "wide"), [(8, 8), (16, 40), (64, 64), (3, 128)])
def test_operations_are_those_counted_at_any_size(vae: AutoencoderKL, high: int, wide: int) -> None:
    costs = DecodeCosts.of(family(vae))
    assert costs is not None
    # `decode` has one more convolution, of a latent pixel each.
    outside = 2 * high * wide * 4 * 4
    assert costs.whole(high, wide).operations == pytest.approx(operations(vae, high, wide) - outside, rel=1e-6)


@pytest.mark.parametrize(("high", "wide"), [(40, 40), (17, 100)])
def test_tiles_cost_what_diffusers_makes_of_them(vae: AutoencoderKL, high: int, wide: int) -> None:
    """Or more: those at the edges are smaller."""
    costs = DecodeCosts.of(family(vae))
    assert costs is not None
    vae.enable_tiling()
    try:
        counted = operations(vae, high, wide)
    finally:
        vae.disable_tiling()
    assert 0.5 * costs.tiled(high, wide).operations <= counted <= 1.01 * costs.tiled(high, wide).operations


def test_large_pictures_pay_in_tiles_and_small_ones_do_not(vae: AutoencoderKL) -> None:
    costs = DecodeCosts.of(family(vae))
    assert costs is not None
    plenty = 2**40
    assert [costs.tiles_pay(size, size, plenty) for size in (16, 32)] == [False, False]
    assert costs.tiles_pay(512, 512, plenty)
    assert costs.tiles_pay(32, 32, int(costs.whole(32, 32).bytes) - 1)


def test_a_family_without_such_a_vae_has_no_costs() -> None:
    assert DecodeCosts.of(SimpleNamespace(meta_components={})) is None  # type: ignore[arg-type]
