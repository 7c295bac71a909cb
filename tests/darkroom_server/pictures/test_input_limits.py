"""Pictures that are too large, and small files that would cost much, are refused before they cost it."""

import itertools
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from darkroom_server.config.settings import Limits
from darkroom_server.pictures.decode import DAMAGED, decode_image, decode_mask
from tests.picture_files import LIMITS, chunk, encoded, picture, png, problem

MIB = 1024 * 1024


def tiff(tags: dict[int, tuple[int, int, int | bytes]], data: bytes = b"") -> bytes:
    """Of {tag: (type, count, value)}; bytes are stored behind the directory, in order, and then the data."""
    behind = 8 + 2 + 12 * len(tags) + 4
    entries, values = b"", b""
    for tag, (kind, count, value) in sorted(tags.items()):
        entries += struct.pack("<HHII", tag, kind, count, behind + len(values) if isinstance(value, bytes) else value)
        values += value if isinstance(value, bytes) else b""
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + values + data


def grey_tiff(width: int, height: int, **more: tuple[int, int, int | bytes]) -> dict[int, tuple[int, int, int | bytes]]:
    """The tags of an uncompressed picture whose one strip begins the file."""
    tags = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 277: (3, 1, 1)}
    return tags | {273: (4, 1, 0), 278: (4, 1, height), 279: (4, 1, width * height)} | more


def peak_growth(call: Callable[[], object]) -> int:
    """By how many bytes the process grows meanwhile, at most: the least of three, as it has other threads."""
    return min(_peak_growth(call) for _ in range(3))


def _peak_growth(call: Callable[[], object]) -> int:
    try:
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to what is held now
    except OSError:
        pytest.skip("the system does not measure it")
    before = peak()
    call()
    return peak() - before


def peak() -> int:
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024


class TestTooLarge:
    def test_edge(self) -> None:
        limits = Limits(max_edge=64)
        assert decode_mask(encoded(Image.new("L", (64, 64)), "PNG"), limits).shape == (64, 64)
        assert problem(encoded(Image.new("L", (65, 1)), "PNG"), limits) == "must be at most 64 x 64 pixels, not 65 x 1"

    def test_pixels(self) -> None:
        limits = Limits(max_edge=128, max_pixels=64 * 64)
        assert decode_mask(encoded(Image.new("L", (128, 32)), "PNG"), limits).shape == (32, 128)
        text = "must have at most 4096 pixels, not 128 x 33"
        assert problem(encoded(Image.new("L", (128, 33)), "PNG"), limits) == text

    @pytest.mark.parametrize("format", ["PNG", "BMP", "GIF", "TIFF", "JPEG", "WEBP"])
    @pytest.mark.parametrize("size", [(16_000, 16_000), (10_000, 10_000)])
    def test_bomb(self, format: str, size: tuple[int, int]) -> None:
        """Refused by the header; Pillow itself would warn of the smaller ones, and refuse the others."""
        data = BOMBS[format](*size)
        assert len(data) < MIB
        assert peak_growth(lambda: problem(data)) < 20 * MIB
        text = "must be at most 2048 x 2048 pixels"
        told = [f"{text}, not {size[0]} x {size[1]}"]
        if format == "WEBP" and size == (16_000, 16_000):
            told.append(text)  # Pillow 13 refuses it before its size is known
        assert problem(data) in told

    def test_bomb_of_a_few_kilobytes(self) -> None:
        rows = b"".join(itertools.repeat(bytes(MIB), 50))
        assert "20000 x 20000" in problem(png((20_000, 20_000), 1, 0, rows))

    def test_gif_whose_frame_is_huge(self) -> None:
        gif = bytearray(encoded(Image.new("L", (9, 5), 77), "GIF"))
        frame = gif.index(b",", 13)
        gif[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
        assert problem(bytes(gif)) == "must be at most 2048 x 2048 pixels"


def webp_bomb(width: int, height: int) -> bytes:
    still = encoded(Image.new("RGB", (8, 8)), "WEBP")[12:]
    frame = bytes(6) + (7).to_bytes(3, "little") * 2 + bytes(4) + still
    canvas = b"\2\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    parts = ((b"VP8X", canvas), (b"ANIM", bytes(6)), (b"ANMF", frame))
    chunks = b"".join(name + struct.pack("<I", len(data)) + data for name, data in parts)
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def jpeg_bomb(width: int, height: int) -> bytes:
    data = bytearray(encoded(Image.new("L", (8, 8)), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def bmp_bomb(width: int, height: int) -> bytes:
    data = bytearray(encoded(Image.new("RGB", (1, 1)), "BMP"))
    data[18:26] = struct.pack("<II", width, height)
    return bytes(data)


def gif_bomb(width: int, height: int) -> bytes:
    data = bytearray(encoded(Image.new("L", (1, 1)), "GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


BOMBS = {
    "PNG": lambda width, height: png((width, height), 8, 2, bytes((1 + 3 * width) * 1000)),
    "BMP": bmp_bomb,
    "GIF": gif_bomb,
    "TIFF": lambda width, height: tiff(grey_tiff(width, height)),
    "JPEG": jpeg_bomb,
    "WEBP": webp_bomb,
}


class TestCostly:
    """Files that are small, or show few pixels, and would keep a reader busy for long or take much memory."""

    def test_tiff_helper(self) -> None:
        assert decode_image(tiff(grey_tiff(2, 1)), LIMITS)[..., 0].tolist() == [[ord("I"), ord("I")]]

    @pytest.mark.parametrize("kind", [2, 4])
    def test_tiff_of_many_strips(self, kind: int) -> None:
        count = 500_000
        tags = grey_tiff(1, 2) | {278: (4, 1, 1), 273: (kind, count, bytes(4 * count))}
        assert problem(tiff(tags)) == DAMAGED

    def test_tiff_of_long_lists(self) -> None:
        assert problem(tiff(grey_tiff(1, 1) | {282: (5, 70_000, bytes(560_000))})) == DAMAGED

    def test_tiff_of_much_private_data(self) -> None:
        layers = grey_tiff(2, 1) | {700: (1, 70_000, bytes(70_000)), 37_724: (7, MIB, bytes(MIB))}
        assert decode_mask(tiff(layers), LIMITS).shape == (1, 2)

    def test_tiff_with_a_directory_of_long_lists(self) -> None:
        """The reader would make an object of each number in it."""
        count = 1_000_000
        start = len(tiff(grey_tiff(2, 1) | {0x8769: (4, 1, 0)}))
        directory = struct.pack("<HHHII", 1, 0x9999, 5, count, start + 18) + bytes(4)
        data = tiff(grey_tiff(2, 1) | {0x8769: (4, 1, start)}, directory + struct.pack("<II", 3, 7) * count)
        assert peak_growth(lambda: decode_mask(data, LIMITS)) < 20 * MIB

    def test_tiff_of_a_huge_tile(self) -> None:
        edge = 8000
        tile = zlib.compress(bytes(edge * edge // 8), 1)
        tags = {256: (4, 1, 1), 257: (4, 1, 1), 258: (3, 1, 1), 259: (3, 1, 8), 262: (3, 1, 1), 277: (3, 1, 1)}
        tags |= {322: (4, 1, edge), 323: (4, 1, edge), 324: (4, 1, 8 + 2 + 12 * 10 + 4), 325: (4, 1, len(tile))}
        assert problem(tiff(tags, tile)) == DAMAGED

    def test_tiff_of_one_tile_that_is_larger_than_the_picture(self) -> None:
        tile = zlib.compress(bytes([255]) * (256 * 256))
        tags = {256: (4, 1, 3), 257: (4, 1, 2), 258: (3, 1, 8), 259: (3, 1, 8), 262: (3, 1, 1), 277: (3, 1, 1)}
        tags |= {322: (4, 1, 256), 323: (4, 1, 256), 324: (4, 1, 8 + 2 + 12 * 10 + 4), 325: (4, 1, len(tile))}
        assert decode_mask(tiff(tags, tile), LIMITS).tolist() == [[255] * 3] * 2

    def test_jpeg_of_many_scans(self) -> None:
        data = encoded(picture(), "JPEG", progressive=True)
        last = data.rindex(b"\xff\xda")
        assert problem(data[:-2] + data[last:-2] * 1000 + data[-2:]) == DAMAGED

    def test_jpeg_of_many_exif_segments(self) -> None:
        data = encoded(picture(), "JPEG")
        segment = b"\xff\xe1\0\x09Exif\0\0\0"
        assert problem(data[:2] + segment * 1000 + data[2:]) == DAMAGED

    @pytest.mark.parametrize("name", [b"zTXt", b"iCCP"])
    def test_png_of_compressed_text(self, name: bytes) -> None:
        extra = chunk(name, b"key\0\0" + zlib.compress(bytes(20 * MIB)))
        assert problem(png((1, 1), 8, 0, b"\0\0", extra)) == DAMAGED

    def test_png_of_too_many_rows(self) -> None:
        data = png((1, 1), 8, 0, bytes(64 * MIB))
        assert peak_growth(lambda: decode_mask(data, LIMITS)) < 20 * MIB
