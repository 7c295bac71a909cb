"""Blocks of pinned memory, whose sizes are powers of two. That they are pinned is tested in test_gpu.py."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from darkroom_server.device.pinned import BLOCK_BYTES, pinned_bytes, pinned_like


@given(st.lists(st.integers(1, 3 * BLOCK_BYTES), max_size=40))
def test_blocks_are_powers_of_two_and_less_than_twice_as_large(sizes: list[int]) -> None:
    taken = pinned_bytes(sizes)
    assert sum(sizes) <= taken <= 2 * sum(sizes) + 512 * len(sizes) + BLOCK_BYTES
    assert taken % BLOCK_BYTES == 0


def test_small_tensors_share_a_block() -> None:
    assert pinned_bytes([1000] * 1000) == BLOCK_BYTES
    assert pinned_bytes([BLOCK_BYTES // 2 + 1] * 3) == 3 * BLOCK_BYTES
    assert pinned_bytes([BLOCK_BYTES + 1]) == 2 * BLOCK_BYTES


def test_tensors_do_not_overlap_and_keep_their_layout() -> None:
    like = [
        torch.zeros(3, 5),
        torch.zeros(2, 3, 4, 4, dtype=torch.float16).to(memory_format=torch.channels_last),
        torch.zeros((), dtype=torch.int64),
        torch.zeros(6, 7).T,
    ]
    made = pinned_like(like)
    for number, each in enumerate(made):
        each.fill_(number)
    for number, (each, wanted) in enumerate(zip(made, like, strict=True)):
        assert (each.shape, each.dtype, each.stride()) == (wanted.shape, wanted.dtype, wanted.stride())
        assert (each == number).all()
    places = sorted((each.data_ptr(), each.nbytes) for each in made)
    assert all(start + size <= after for (start, size), (after, _) in pairwise(places))
