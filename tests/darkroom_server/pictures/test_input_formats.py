"""Every kind of picture is decoded to the same pixels."""

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from darkroom_server.config.settings import Limits
from darkroom_server.pictures.decode import decode_control_map, decode_image, decode_mask
from tests.picture_files import LIMITS, LOSSLESS, NOISE, chunk, encoded, picture, png, problem

ORIENTATION = 0x0112
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


def over_white(pixels: np.ndarray) -> np.ndarray:
    colours, alpha = pixels[..., :-1].astype(float), pixels[..., -1:] / 255
    return colours * alpha + 255 * (1 - alpha)


def masked(image: Image.Image) -> np.ndarray:
    """A picture without alpha as a mask: from half on."""
    return np.where(np.asarray(image.convert("L")) < 128, 0, 255)


class TestFormats:
    @pytest.mark.parametrize("name", LOSSLESS)
    def test_lossless(self, name: str) -> None:
        format, options = LOSSLESS[name]
        data = encoded(picture(), format, **options)
        pixels, mask = decode_image(data, LIMITS), decode_mask(data, LIMITS)
        np.testing.assert_array_equal(pixels, NOISE[..., :3])
        np.testing.assert_array_equal(mask, masked(picture()))
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
        np.testing.assert_array_equal(decode_control_map(data, LIMITS), np.asarray(image.convert("RGB")))
        black = Image.new("RGBA", image.size, "black")
        expected = masked(Image.alpha_composite(black, image.convert("RGBA")))
        np.testing.assert_array_equal(decode_mask(data, LIMITS), expected)
        assert (expected != masked(image)).any(), "the case cannot fail"

    @pytest.mark.parametrize(("colour", "levels"), [("white", [255, 255, 0, 0]), ("black", [0, 0, 0, 0])])
    def test_a_mask_in_alpha(self, colour: str, levels: list[int]) -> None:
        """Opaque white is repainted: of a mask of one colour, its alpha decides."""
        image = Image.new("RGBA", (4, 1), colour)
        image.putalpha(Image.fromarray(np.array([[255, 128, 127, 0]], np.uint8)))
        assert decode_mask(encoded(image, "PNG"), LIMITS).tolist() == [levels]

    @pytest.mark.parametrize("mode", ["1", "L", "P"])
    @pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "GIF"])
    def test_grey_and_palette(self, mode: str, format: str) -> None:
        image = picture(mode)
        data = encoded(image, format)
        np.testing.assert_array_equal(decode_image(data, LIMITS), np.asarray(image.convert("RGB")))
        np.testing.assert_array_equal(decode_mask(data, LIMITS), masked(image.convert("RGB")))

    @pytest.mark.parametrize("transparency", [1, b"\xff\x00\x80"])
    def test_palette_with_transparency(self, transparency: int | bytes) -> None:
        image = Image.new("P", (3, 1))
        image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
        image.putdata([0, 1, 2])
        data = encoded(image, "PNG", transparency=transparency)
        blue = [0, 0, 255] if transparency == 1 else [127, 127, 255]
        assert decode_image(data, LIMITS).tolist() == [[[255, 0, 0], [255, 255, 255], blue]]
        assert decode_control_map(data, LIMITS).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
        assert decode_mask(data, LIMITS).tolist() == [[0, 0, 0]]

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
        assert decode_control_map(data, LIMITS).tolist() == [[[10, 20, 30], [10, 20, 31]]]

    @pytest.mark.parametrize("format", ["PNG", "TIFF"])
    def test_sixteen_bits(self, format: str) -> None:
        values = np.array([[0, 255, 256, 32_768, 65_279, 65_535]], np.uint16)
        data = encoded(Image.fromarray(values), format)
        assert decode_mask(data, LIMITS).tolist() == [[0, 0, 0, 255, 255, 255]]
        assert decode_image(data, LIMITS)[..., 2].tolist() == [[0, 0, 1, 128, 254, 255]]

    def test_sixteen_bits_and_a_transparent_value(self) -> None:
        data = png((2, 1), 16, 0, b"\0\x12\x34\x12\x35", chunk(b"tRNS", b"\x12\x34"))
        assert decode_image(data, LIMITS)[..., 0].tolist() == [[255, 0x12]]
        assert decode_control_map(data, LIMITS)[..., 0].tolist() == [[0x12, 0x12]]

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
        assert decode_image(data, LIMITS)[..., 0].tolist() == [seen]

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
        data = encoded(Image.new("RGB", (16, 16), (200, 30, 60)).convert("YCbCr"), "TIFF", compression="jpeg")
        assert np.abs(decode_image(data, LIMITS).astype(int) - (200, 30, 60)).max() <= 3

    def test_lab(self) -> None:
        red = Image.merge("LAB", [Image.new("L", (2, 2), value) for value in (137, 205, 195)])
        data = encoded(red, "TIFF")
        assert np.abs(decode_image(data, LIMITS).astype(int) - (247, 20, 9)).max() <= 8


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
            (decode_control_map(data, LIMITS), seen),
        ):
            assert result.shape == expected.shape
            assert np.abs(result.astype(int) - expected).max() <= (8 if format == "JPEG" else 0)
            assert result.flags.c_contiguous
        mask = decode_mask(data, LIMITS)
        assert (mask != masked(Image.fromarray(seen))).mean() <= (0.1 if format == "JPEG" else 0)

    @pytest.mark.parametrize(
        "exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0", b"MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\6\0"]
    )
    def test_damaged_exif_turns_nothing(self, exif: bytes) -> None:
        data = png((1, 2), 8, 0, b"\0\1\0\2", chunk(b"eXIf", exif))
        assert decode_image(data, LIMITS)[..., 0].tolist() == [[1], [2]]

    def test_exif_that_is_text(self) -> None:
        data = png((1, 2), 8, 0, b"\0\1\0\2", chunk(b"tEXt", b"exif\0II*\0"))
        assert decode_image(data, LIMITS)[..., 0].tolist() == [[1], [2]]
