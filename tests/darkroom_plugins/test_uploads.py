"""Weights on their way to a device, with a stand-in for its stream: copies are done when somebody waits for them."""

import math
from collections.abc import Callable

import pytest
import torch

from darkroom_plugins.uploads import Uploader, uploading

CPU = torch.device("cpu")


class Stream:
    """Does what it was asked only when it is waited for, as a device may."""

    def __init__(self) -> None:
        self.asked: list[Callable[[], object]] = []
        self.done = self.waits = 0
        self.largest = 0  # bytes of a copy

    def send(self, target: torch.Tensor, source: torch.Tensor) -> None:
        assert target.stride() == source.stride()
        self.largest = max(self.largest, source.nbytes)
        self.asked.append(lambda: target.copy_(source))

    def record(self) -> "Event":
        return Event(self, len(self.asked))

    def run(self, until: int) -> None:
        for copy in self.asked[self.done : until]:
            copy()
        self.done = max(self.done, until)


class Event:
    def __init__(self, stream: Stream, after: int) -> None:
        self._stream, self._after = stream, after

    def synchronize(self) -> None:
        self._stream.waits += 1
        self._stream.run(self._after)


def uploader(stream: Stream, size: int) -> Uploader:
    return Uploader(CPU, lambda: [torch.zeros(size, dtype=torch.uint8) for _ in range(2)], stream.record, stream.send)


def tensors() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(), (0,), (7,), (40, 30), (8, 3, 3, 3), (16, 8, 1, 1), (3, 5, 7), (1, 300)]
    plain = [torch.randn(shape, generator=generator) for shape in shapes]
    return [*plain, torch.arange(9), plain[3].T, plain[3][::2, ::3], torch.randn(600, 50, generator=generator)]


@pytest.mark.parametrize("size", [2**9, 2**11, 2**20])
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_what_arrives_is_what_was_sent(size: int, dtype: torch.dtype | None) -> None:
    """Whatever the buffers' size: larger tensors go in parts."""
    stream = Stream()
    to = uploader(stream, size)
    sent = tensors()
    layouts = [torch.channels_last if each.dim() == 4 else torch.preserve_format for each in sent]
    arrived = [to.copy(each, dtype, layout) for each, layout in zip(sent, layouts, strict=True)]
    stream.run(len(stream.asked))
    for each, copy, layout in zip(sent, arrived, layouts, strict=True):
        expected = each.to(dtype or each.dtype, copy=True, memory_format=layout)
        assert copy.dtype == expected.dtype
        assert copy.stride() == expected.stride()
        assert torch.equal(copy, expected)
    assert stream.largest <= size


def test_it_waits_for_a_buffer_and_for_no_tensor() -> None:
    stream = Stream()
    to = uploader(stream, 4096)
    for _ in range(20):
        to.copy(torch.ones(100))
    assert stream.waits == 18  # the two buffers in turns, each for the copy before the last
    assert stream.done == 18


def test_without_a_device_of_its_own_nothing_is_staged() -> None:
    with uploading(CPU) as to:
        assert to is None


def test_a_tensor_that_cannot_be_divided_is_copied_at_once() -> None:
    stream = Stream()
    tensor = torch.ones(1, 1000)
    assert math.prod(tensor.shape) * 4 > 512
    assert torch.equal(uploader(stream, 512).copy(tensor), tensor)
    assert not stream.asked
