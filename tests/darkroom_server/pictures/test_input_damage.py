"""Files that are no pictures, cut off or damaged are refused, and do no harm."""

import random
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageFile

from darkroom_server.pictures.decode import DAMAGED, BadImage, decode_image, decode_mask
from tests.picture_files import FILES, LIMITS, LOSSLESS, encoded, mutated, picture, png, problem


class TestRefused:
    def test_empty(self) -> None:
        assert problem(b"") == "must not be empty"

    @pytest.mark.parametrize(
        "data",
        [
            b"a cat",
            b"\0",
            b"<svg xmlns='http://www.w3.org/2000/svg' width='1' height='1'/>",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n",
            b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 1, 1, 8, 3) + bytes(20),
            b"RIFF\0\0\0\0WAVEfmt ",
            b"II\x2b\0\x08\0\0\0",
            encoded(Image.new("RGB", (2, 2)), "PPM"),
            encoded(Image.new("RGB", (2, 2)), "ICO"),
        ],
    )
    def test_other_kinds(self, data: bytes) -> None:
        assert problem(data) == "must be a PNG, JPEG, WebP, BMP, TIFF or GIF file"

    def test_text_is_ours(self) -> None:
        text = problem(b"\x89PNG\r\n\x1a\n")
        assert text == DAMAGED
        assert text.startswith("cannot be decoded: ")
        assert len(text) < 200

    def test_reader_does_not_take_what_is_cut_off(self) -> None:
        assert not ImageFile.LOAD_TRUNCATED_IMAGES

    @pytest.mark.parametrize("name", [*LOSSLESS, "jpeg", "gif"])
    def test_cut_off(self, name: str) -> None:
        """Anywhere: what is missed is at most the end mark, behind the pixels."""
        format, options = LOSSLESS.get(name, (name.upper(), {}))
        data = encoded(picture(), format, **options)
        whole = decode_image(data, LIMITS)
        for length in range(1, len(data), max(1, len(data) // 60)):
            try:
                np.testing.assert_array_equal(decode_image(data[:length], LIMITS), whole)
            except BadImage:
                continue
            assert length > len(data) * 0.8

    @pytest.mark.parametrize("size", [(0, 1), (1, 0), (2**31 - 1, 1), (2**31, 2**31)])
    def test_impossible_sizes(self, size: tuple[int, int]) -> None:
        problem(png(size, 8, 0, b"\0\0"))

    def test_memory_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise MemoryError("at 0x7f00")

        data = encoded(picture(), "PNG")
        monkeypatch.setattr(Image, "alpha_composite", fail)
        with pytest.raises(MemoryError):  # the worker says so in words of its own
            decode_image(data, LIMITS)


def check_damaged(name: str) -> None:
    rng = random.Random(name)
    for _ in range(25):
        data = mutated(FILES[name], rng)
        try:
            image, mask = decode_image(data, LIMITS), decode_mask(data, LIMITS)
        except BadImage:
            assert "0x" not in problem(data)
        else:
            assert image.shape == (*mask.shape, 3)
            assert min(mask.shape) >= 1


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_decoded_or_refused(name: str) -> None:
    check_damaged(name)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_of_which_pillow_only_warns(name: str) -> None:
    """As in a server: in these tests warnings are errors otherwise."""
    check_damaged(name)


def test_threads() -> None:
    files = list(FILES.values())
    expected = [decode_image(data, LIMITS) for data in files]
    start = threading.Barrier(4)

    def decode(_: int) -> bool:
        start.wait()
        return all(np.array_equal(decode_image(data, LIMITS), seen) for data, seen in zip(files, expected, strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(decode, range(4)))
