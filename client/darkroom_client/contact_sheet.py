"""Contact sheets: grids of labelled pictures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

_MARGIN = 8  # pixels between tiles
_TEXT_SIZE = 13  # pixels
_LINE_HEIGHT = 17  # pixels
_BACKGROUND, _TEXT_COLOR = (24, 24, 27), (228, 228, 231)


@dataclass(frozen=True, slots=True)
class Tile:
    """A picture and its label of one or more lines."""

    image: PIL.Image.Image
    label: str


def contact_sheet(tiles: Sequence[Tile], *, columns: int | None = None, min_edge: int = 128) -> PIL.Image.Image:
    """A sheet of all tiles, row by row.

    Tiles have the size of the largest picture, and at least `min_edge` pixels on the longer edge; each picture is
    scaled to fit its tile.

    :raises ValueError: without tiles.
    """
    if not tiles:
        raise ValueError("a contact sheet needs at least one picture")
    columns = columns or _columns(len(tiles))
    width, height = _tile_size(tiles, min_edge)
    text_height = _LINE_HEIGHT * max(tile.label.count("\n") + 1 for tile in tiles)
    across, down = width + _MARGIN, height + text_height + _MARGIN
    rows = math.ceil(len(tiles) / columns)
    sheet = PIL.Image.new("RGB", (columns * across + _MARGIN, rows * down + _MARGIN), _BACKGROUND)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        _draw_tile(sheet, tile, (_MARGIN + column * across, _MARGIN + row * down), (width, height))
    return sheet


def _columns(count: int) -> int:
    return min(count, max(4, math.ceil(math.sqrt(count * 1.5))))


def _tile_size(tiles: Sequence[Tile], min_edge: int) -> tuple[int, int]:
    width = max(tile.image.width for tile in tiles)
    height = max(tile.image.height for tile in tiles)
    factor = max(1.0, min_edge / max(width, height))
    widest = max(_font().getlength(line) for tile in tiles for line in tile.label.split("\n"))
    return max(round(width * factor), math.ceil(widest)), round(height * factor)


def _draw_tile(sheet: PIL.Image.Image, tile: Tile, corner: tuple[int, int], size: tuple[int, int]) -> None:
    left, top = corner
    factor = min(size[0] / tile.image.width, size[1] / tile.image.height)
    scaled = (max(1, round(tile.image.width * factor)), max(1, round(tile.image.height * factor)))
    picture = tile.image.convert("RGB").resize(scaled, PIL.Image.Resampling.LANCZOS)
    sheet.paste(picture, (left + (size[0] - scaled[0]) // 2, top + (size[1] - scaled[1]) // 2))
    draw = PIL.ImageDraw.Draw(sheet)
    for line, text in enumerate(tile.label.split("\n")):
        middle = left + (size[0] - _font().getlength(text)) / 2
        draw.text((middle, top + size[1] + 1 + line * _LINE_HEIGHT), text, fill=_TEXT_COLOR, font=_font())


def _font() -> PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont:
    return PIL.ImageFont.load_default(_TEXT_SIZE)
