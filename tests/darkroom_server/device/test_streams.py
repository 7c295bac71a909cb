"""Pictures on their way from the device. What a CUDA device does meanwhile is tested in test_gpu.py."""

import threading

import numpy as np
import pytest
import torch

from darkroom_plugins.errors import NonFinite
from darkroom_server.device.transfer import DecodeLimiter, PendingImage, to_pictures


def test_pictures_are_rounded_as_diffusers_rounds_them() -> None:
    from diffusers.image_processor import VaeImageProcessor

    images = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2.4 - 1.2
    expected = VaeImageProcessor().postprocess(images, output_type="pil")
    for picture, each in zip(to_pictures(images), expected, strict=True):
        assert np.array_equal(picture.read(), np.asarray(each))


def test_only_the_picture_with_values_that_are_not_finite_cannot_be_read() -> None:
    images = torch.zeros(3, 3, 8, 8)
    images[1, 2, 3, 4] = torch.inf
    first, second, third = to_pictures(images)
    assert (first.read() == 128).all()
    assert (third.read() == 128).all()
    with pytest.raises(NonFinite):
        second.read()


def test_who_reads_waits_until_it_is_there() -> None:
    class Event:
        def __init__(self) -> None:
            self.came = threading.Event()

        def query(self) -> bool:
            return self.came.is_set()

        def synchronize(self) -> None:
            assert self.came.wait(20)

    event, pixels, finite = Event(), torch.zeros(2, 2, 3, dtype=torch.uint8), torch.tensor(False)
    picture, read = PendingImage(pixels, finite, event), []
    reader = threading.Thread(target=lambda: read.append(picture.read()))
    reader.start()
    assert not picture.ready
    pixels.fill_(7)  # as the copy does, which is not there before its event
    finite.fill_(True)
    event.came.set()
    assert picture.ready
    reader.join(20)
    assert (read[0] == 7).all()


def test_pictures_under_way_are_bounded() -> None:
    waited: list[int] = []

    class Event:
        def __init__(self, number: int) -> None:
            self.number, self.came = number, False

        def query(self) -> bool:
            return self.came

        def synchronize(self) -> None:
            waited.append(self.number)

    events = [Event(number) for number in range(9)]
    pictures = [PendingImage(torch.zeros(1, 1, 3, dtype=torch.uint8), torch.tensor(True), each) for each in events]
    decodes = DecodeLimiter(2)
    decodes.add(pictures[:2])
    assert not waited
    decodes.add(pictures[2:4])
    assert waited == [0, 1]
    events[2].came = events[3].came = True
    waited.clear()
    decodes.add(pictures[4:5])
    decodes.add(pictures[5:6])
    assert waited == [2, 3]  # which does not wait, as they are there
    decodes.add(pictures[6:])
    assert waited == [2, 3, 4, 5, 6]
