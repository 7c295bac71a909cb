"""Contact sheets show every picture, and labels that do not overlap them."""

import PIL.Image
import pytest

from darkroom_client.contact_sheet import Tile, contact_sheet


def count(sheet, color):
    """Pixels of a colour."""
    return sum(number for number, found in sheet.getcolors(sheet.width * sheet.height) if found == color)


def test_shows_each_picture():
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]
    tiles = [Tile(PIL.Image.new("RGB", (64, 64), color), f"step {n}") for n, color in enumerate(colors)]
    sheet = contact_sheet(tiles)
    assert [count(sheet, color) for color in colors] == [128 * 128] * 5
    assert sheet.height > 2 * 128
    assert contact_sheet(tiles, columns=1).width < 160


def test_keeps_proportions_and_large_sizes():
    wide, tall = PIL.Image.new("RGB", (300, 100), "red"), PIL.Image.new("L", (100, 300), 255)
    sheet = contact_sheet([Tile(wide, "a"), Tile(tall, "b\nc")])
    assert count(sheet, (255, 0, 0)) == 300 * 100
    assert count(sheet, (255, 255, 255)) == 100 * 300


def test_wide_labels_widen_the_tiles():
    plain, wide = (
        contact_sheet([Tile(PIL.Image.new("RGB", (64, 64)), label)]).width for label in ("a", "a label of many words")
    )
    assert wide > plain


def test_needs_a_picture():
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])
