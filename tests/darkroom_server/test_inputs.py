"""Every kind of picture is decoded to the same pixels, and no file does harm."""

import io
import itertools
import random
import struct
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from darkroom_server import inputs
from darkroom_server.inputs import BadImage, decode_image, decode_mask
from darkroom_server.settings import Limits

LIMITS = Limits()
MIB = 1024 * 1024
ORIENTATION = 0x0112
NOISE = np.random.default_rng(0).integers(0, 256, (13, 19, 4), np.uint8)
SMOOTH = np.stack(np.broadcast_arrays(np.arange(80, 208, 8)[:, None], np.arange(60, 252, 8), 128), -1).astype(np.uint8)
TURNED = {  # what the viewer sees of pixels that are stored with each orientation
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def picture(mode: str = "RGB") -> Image.Image:
    """Noise, in a mode of 8 bits a channel or less."""
    return Image.fromarray(NOISE if mode.endswith("A") else NOISE[..., :3]).convert(mode)


def png(size: tuple[int, int], bits: int, kind: int, rows: bytes, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


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


def problem(data: bytes, limits: Limits = LIMITS) -> str:
    """What both functions say of the file."""
    with pytest.raises(BadImage) as image:
        decode_image(data, limits)
    with pytest.raises(BadImage) as mask:
        decode_mask(data, limits)
    assert str(image.value) == str(mask.value)
    return str(image.value)


def over_white(pixels: np.ndarray) -> np.ndarray:
    colours, alpha = pixels[..., :-1].astype(float), pixels[..., -1:] / 255
    return colours * alpha + 255 * (1 - alpha)


def peak_growth(call: Callable[[], object]) -> int:
    """By how many bytes the process grows meanwhile, at most."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to what is held now
    except OSError:
        pytest.skip("the system does not measure it")
    before = peak()
    call()
    return peak() - before


def peak() -> int:
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024


LOSSLESS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "webp": ("WEBP", {"lossless": True, "exact": True}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "tiff lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "tiff packbits": ("TIFF", {"compression": "packbits"}),
}


class TestFormats:
    @pytest.mark.parametrize("name", LOSSLESS)
    def test_lossless(self, name: str) -> None:
        format, options = LOSSLESS[name]
        data = encoded(picture(), format, **options)
        pixels, mask = decode_image(data, LIMITS), decode_mask(data, LIMITS)
        np.testing.assert_array_equal(pixels, NOISE[..., :3])
        np.testing.assert_array_equal(mask, np.asarray(picture().convert("L")))
        for each in (pixels, mask):
            assert each.dtype == np.uint8
            assert each.flags.c_contiguous
            assert not each.flags.writeable

    @pytest.mark.parametrize(
        ("format", "options"),
        [("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("TIFF", {"compression": "jpeg"})],
    )
    def test_lossy(self, format: str, options: dict[str, Any]) -> None:
        data = encoded(Image.fromarray(SMOOTH), format, quality=100, **options)
        assert np.abs(decode_image(data, LIMITS).astype(int) - SMOOTH).max() <= 8

    @pytest.mark.parametrize("compression", ["group3", "group4"])
    def test_fax(self, compression: str) -> None:
        image = picture("1")
        data = encoded(image, "TIFF", compression=compression)
        np.testing.assert_array_equal(decode_mask(data, LIMITS), np.asarray(image) * np.uint8(255))

    @pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
    def test_first_frame_of_several(self, format: str) -> None:
        frames = [Image.new("RGB", (9, 5), colour) for colour in ("red", "lime", "blue")]
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
        np.testing.assert_array_equal(decode_image(data, LIMITS), np.asarray(frames[0]))

    def test_phone_picture_with_a_second_one(self) -> None:
        image = Image.fromarray(SMOOTH)
        data = encoded(image, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))], quality=100)
        assert decode_image(data, LIMITS).shape == SMOOTH.shape

    def test_frame_that_reaches_out_of_its_gif(self) -> None:
        gif = bytearray(encoded(Image.new("L", (9, 5), 77), "GIF"))
        gif[6:10] = struct.pack("<HH", 3, 2)
        assert decode_image(bytes(gif), LIMITS).shape == (5, 9, 3)
        assert "not 9 x 5" in problem(bytes(gif), Limits(max_edge=64).model_copy(update={"max_edge": 8}))

    @pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
    def test_one_pixel(self, format: str) -> None:
        data = encoded(Image.new("RGB", (1, 1), "white"), format)
        assert decode_image(data, LIMITS).tolist() == [[[255, 255, 255]]]
        assert decode_mask(data, LIMITS).tolist() == [[255]]


class TestModes:
    @pytest.mark.parametrize(("mode", "format"), [("RGBA", "PNG"), ("RGBA", "TIFF"), ("RGBA", "WEBP"), ("LA", "PNG")])
    def test_alpha(self, mode: str, format: str) -> None:
        image = picture(mode)
        data = encoded(image, format, **({"lossless": True, "exact": True} if format == "WEBP" else {}))
        seen = over_white(np.asarray(image))
        assert np.abs(decode_image(data, LIMITS) - seen).max() <= 1
        np.testing.assert_array_equal(decode_mask(data, LIMITS), np.asarray(image.convert("L")))

    @pytest.mark.parametrize("mode", ["1", "L", "P"])
    @pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "GIF"])
    def test_grey_and_palette(self, mode: str, format: str) -> None:
        image = picture(mode)
        data = encoded(image, format)
        np.testing.assert_array_equal(decode_image(data, LIMITS), np.asarray(image.convert("RGB")))
        np.testing.assert_array_equal(decode_mask(data, LIMITS), np.asarray(image.convert("RGB").convert("L")))

    @pytest.mark.parametrize("transparency", [1, b"\xff\x00\x80"])
    def test_palette_with_transparency(self, transparency: int | bytes) -> None:
        image = Image.new("P", (3, 1))
        image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
        image.putdata([0, 1, 2])
        data = encoded(image, "PNG", transparency=transparency)
        blue = [0, 0, 255] if transparency == 1 else [127, 127, 255]
        assert decode_image(data, LIMITS).tolist() == [[[255, 0, 0], [255, 255, 255], blue]]
        assert decode_mask(data, LIMITS).tolist() == [[76, 150, 29]]

    def test_transparent_gif(self) -> None:
        image = Image.new("P", (2, 1))
        image.putpalette([255, 0, 0, 0, 255, 0])
        image.putdata([0, 1])
        data = encoded(image, "GIF", transparency=0)
        assert decode_image(data, LIMITS).tolist() == [[[255, 255, 255], [0, 255, 0]]]

    def test_transparent_colour(self) -> None:
        rows = b"\0" + bytes([10, 20, 30, 10, 20, 31])
        data = png((2, 1), 8, 2, rows, chunk(b"tRNS", struct.pack(">HHH", 10, 20, 30)))
        assert decode_image(data, LIMITS).tolist() == [[[255, 255, 255], [10, 20, 31]]]
        assert decode_mask(data, LIMITS).tolist() == [[18, 18]]

    @pytest.mark.parametrize("format", ["PNG", "TIFF"])
    def test_sixteen_bits(self, format: str) -> None:
        values = np.array([[0, 255, 256, 32_768, 65_279, 65_535]], np.uint16)
        data = encoded(Image.fromarray(values), format)
        assert decode_mask(data, LIMITS).tolist() == [[0, 0, 1, 128, 254, 255]]
        assert decode_image(data, LIMITS)[..., 2].tolist() == [[0, 0, 1, 128, 254, 255]]

    def test_sixteen_bits_and_a_transparent_value(self) -> None:
        data = png((2, 1), 16, 0, b"\0\x12\x34\x12\x35", chunk(b"tRNS", b"\x12\x34"))
        assert decode_image(data, LIMITS)[..., 0].tolist() == [[255, 0x12]]
        assert decode_mask(data, LIMITS).tolist() == [[0x12, 0x12]]

    def test_sixteen_bits_of_colours_and_alpha(self) -> None:
        data = png((1, 1), 16, 6, b"\0" + struct.pack(">HHHH", 65_535, 32_768, 0, 65_535))
        assert decode_image(data, LIMITS).tolist() == [[[255, 128, 0]]]

    @pytest.mark.parametrize(
        ("values", "seen"),
        [
            ([0, 100, 255], [0, 100, 255]),
            ([0, 32_768, 65_535], [0, 128, 255]),
            ([-5, 2**30, 2**31 - 1], [0, 128, 255]),
        ],
    )
    def test_thirty_two_bits(self, values: list[int], seen: list[int]) -> None:
        data = encoded(Image.fromarray(np.array([values], np.int32)), "TIFF")
        assert decode_mask(data, LIMITS).tolist() == [seen]

    @pytest.mark.parametrize(
        ("values", "seen"),
        [
            ([-1, 0.5, 1], [0, 128, 255]),
            ([0.4, 100, 300], [0, 100, 255]),
            ([float("nan"), float("inf"), float("-inf")], [0, 255, 0]),
        ],
    )
    def test_floats(self, values: list[float], seen: list[int]) -> None:
        data = encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")
        assert decode_mask(data, LIMITS).tolist() == [seen]
        assert decode_image(data, LIMITS)[..., 1].tolist() == [seen]

    @pytest.mark.parametrize("format", ["JPEG", "TIFF"])
    def test_cmyk(self, format: str) -> None:
        image = Image.new("CMYK", (16, 16), (20, 200, 90, 40))
        seen = decode_image(encoded(image, format), LIMITS)[8, 8]
        assert np.abs(seen.astype(int) - [(255 - ink) * 215 // 255 for ink in (20, 200, 90)]).max() <= 3

    def test_ycck(self) -> None:
        """Adobe stores inverted inks; here those of cyan, magenta and yellow as YCbCr."""
        stored = Image.new("RGB", (1, 1), (20, 200, 90)).convert("YCbCr").getpixel((0, 0))
        assert isinstance(stored, tuple)
        image = Image.new("CMYK", (16, 16), (*(255 - each for each in stored), 40))
        data = bytearray(encoded(image, "JPEG", quality=100))
        data[data.index(b"Adobe") + 11] = 2
        seen = decode_image(bytes(data), LIMITS)[8, 8]
        assert np.abs(seen.astype(int) - [(255 - ink) * 215 // 255 for ink in (20, 200, 90)]).max() <= 4

    def test_ycbcr(self) -> None:
        data = encoded(Image.new("RGB", (16, 16), (200, 30, 60)).convert("YCbCr"), "TIFF")
        assert np.abs(decode_image(data, LIMITS).astype(int) - (200, 30, 60)).max() <= 3

    def test_lab(self) -> None:
        red = Image.merge("LAB", [Image.new("L", (2, 2), value) for value in (137, 205, 195)])
        data = encoded(red, "TIFF")
        assert np.abs(decode_image(data, LIMITS).astype(int) - (247, 20, 9)).max() <= 8
        assert np.abs(decode_mask(data, LIMITS).astype(int) - 86).max() <= 8


OPTIONS: dict[str, dict[str, Any]] = {
    "WEBP": {"lossless": True},
    "TIFF lzw": {"compression": "tiff_lzw"},
    "JPEG": {"quality": 100},
}


class TestOrientation:
    @pytest.mark.parametrize("orientation", TURNED)
    @pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "TIFF lzw", "JPEG"])
    def test_turned(self, format: str, orientation: int) -> None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        exif.get_ifd(0x8769)[0x9286] = b"a directory of its own"
        options = OPTIONS.get(format, {})
        pixels = SMOOTH if format == "JPEG" else NOISE[..., :3]
        data = encoded(Image.fromarray(pixels), format.partition(" ")[0], exif=exif, **options)
        seen = TURNED[orientation](pixels)
        for result, expected in (
            (decode_image(data, LIMITS), seen),
            (decode_mask(data, LIMITS), np.asarray(Image.fromarray(seen).convert("L"))),
        ):
            assert result.shape == expected.shape
            assert np.abs(result.astype(int) - expected).max() <= (8 if format == "JPEG" else 0)
            assert result.flags.c_contiguous

    @pytest.mark.parametrize(
        "exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0", b"MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\6\0"]
    )
    def test_damaged_exif_turns_nothing(self, exif: bytes) -> None:
        data = png((1, 2), 8, 0, b"\0\1\0\2", chunk(b"eXIf", exif))
        assert decode_mask(data, LIMITS).tolist() == [[1], [2]]

    def test_exif_that_is_text(self) -> None:
        data = png((1, 2), 8, 0, b"\0\1\0\2", chunk(b"tEXt", b"exif\0II*\0"))
        assert decode_mask(data, LIMITS).tolist() == [[1], [2]]


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
        assert text == inputs.DAMAGED
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
        with pytest.raises(BadImage, match="cannot be decoded"):
            decode_image(data, LIMITS)


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
        told = "" if format == "WEBP" and size == (16_000, 16_000) else f", not {size[0]} x {size[1]}"
        assert problem(data) == "must be at most 2048 x 2048 pixels" + told

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
        assert decode_mask(tiff(grey_tiff(2, 1)), LIMITS).tolist() == [[ord("I"), ord("I")]]

    @pytest.mark.parametrize("kind", [2, 4])
    def test_tiff_of_many_strips(self, kind: int) -> None:
        count = 500_000
        tags = grey_tiff(1, 2) | {278: (4, 1, 1), 273: (kind, count, bytes(4 * count))}
        assert problem(tiff(tags)) == inputs.DAMAGED

    def test_tiff_of_long_lists(self) -> None:
        assert problem(tiff(grey_tiff(1, 1) | {282: (5, 70_000, bytes(560_000))})) == inputs.DAMAGED

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
        assert problem(tiff(tags, tile)) == inputs.DAMAGED

    def test_tiff_of_one_tile_that_is_larger_than_the_picture(self) -> None:
        tile = zlib.compress(bytes([255]) * (256 * 256))
        tags = {256: (4, 1, 3), 257: (4, 1, 2), 258: (3, 1, 8), 259: (3, 1, 8), 262: (3, 1, 1), 277: (3, 1, 1)}
        tags |= {322: (4, 1, 256), 323: (4, 1, 256), 324: (4, 1, 8 + 2 + 12 * 10 + 4), 325: (4, 1, len(tile))}
        assert decode_mask(tiff(tags, tile), LIMITS).tolist() == [[255] * 3] * 2

    def test_jpeg_of_many_scans(self) -> None:
        data = encoded(picture(), "JPEG", progressive=True)
        last = data.rindex(b"\xff\xda")
        assert problem(data[:-2] + data[last:-2] * 1000 + data[-2:]) == inputs.DAMAGED

    def test_jpeg_of_many_exif_segments(self) -> None:
        data = encoded(picture(), "JPEG")
        segment = b"\xff\xe1\0\x09Exif\0\0\0"
        assert problem(data[:2] + segment * 1000 + data[2:]) == inputs.DAMAGED

    @pytest.mark.parametrize("name", [b"zTXt", b"iCCP"])
    def test_png_of_compressed_text(self, name: bytes) -> None:
        extra = chunk(name, b"key\0\0" + zlib.compress(bytes(20 * MIB)))
        assert problem(png((1, 1), 8, 0, b"\0\0", extra)) == inputs.DAMAGED

    def test_png_of_too_many_rows(self) -> None:
        data = png((1, 1), 8, 0, bytes(64 * MIB))
        assert peak_growth(lambda: decode_mask(data, LIMITS)) < 20 * MIB


FUZZED = {
    "png": encoded(picture("RGBA"), "PNG"),
    "png of 16 bits": encoded(Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257), "PNG"),
    "palette png": encoded(picture("P"), "PNG", transparency=b"\0\x80"),
    "jpeg": encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"),
    "progressive jpeg": encoded(picture("CMYK"), "JPEG", progressive=True),
    "webp": encoded(picture(), "WEBP"),
    "lossless webp": encoded(picture("RGBA"), "WEBP", lossless=True),
    "animated webp": encoded(picture(), "WEBP", save_all=True, append_images=[picture().rotate(90)]),
    "bmp": encoded(picture(), "BMP"),
    "palette bmp": encoded(picture("P"), "BMP"),
    "tiff": encoded(picture("RGBA"), "TIFF"),
    "tiff lzw": encoded(picture("LAB"), "TIFF", compression="tiff_lzw"),
    "tiff jpeg": encoded(picture(), "TIFF", compression="jpeg"),
    "float tiff": encoded(Image.fromarray(NOISE[..., 0].astype(np.float32)), "TIFF"),
    "gif": encoded(picture("P"), "GIF", transparency=3),
}


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, mostly in the header, or a piece cut out or doubled."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(rng.choice((len(changed), min(len(changed), 200))))
        changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256), changed[at] ^ 1 << rng.randrange(8)))
    start, length = rng.randrange(len(changed)), rng.randrange(40)
    piece = bytes(changed[start : start + length])
    return bytes(changed) if rng.random() < 0.7 else bytes(changed).replace(piece, piece * rng.choice((0, 2)), 1)


def check_damaged(name: str) -> None:
    rng = random.Random(name)
    for _ in range(25):
        data = mutated(FUZZED[name], rng)
        try:
            image, mask = decode_image(data, LIMITS), decode_mask(data, LIMITS)
        except BadImage:
            assert "0x" not in problem(data)
        else:
            assert image.shape == (*mask.shape, 3)
            assert min(mask.shape) >= 1


@pytest.mark.parametrize("name", FUZZED)
def test_damaged_files_are_decoded_or_refused(name: str) -> None:
    check_damaged(name)


@pytest.mark.parametrize("name", FUZZED)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_of_which_pillow_only_warns(name: str) -> None:
    """As in a server: in these tests warnings are errors otherwise."""
    check_damaged(name)


def test_threads() -> None:
    files = list(FUZZED.values())
    expected = [decode_image(data, LIMITS) for data in files]
    start = threading.Barrier(4)

    def decode(_: int) -> bool:
        start.wait()
        return all(np.array_equal(decode_image(data, LIMITS), seen) for data, seen in zip(files, expected, strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(decode, range(4)))
