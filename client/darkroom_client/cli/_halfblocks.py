"""Pictures in the terminal by half blocks: each character cell shows an upper and a lower pixel."""

from collections.abc import Iterator

import PIL.Image
from rich.color import Color
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style


class HalfBlocks:
    """A rich renderable of a picture, scaled to fit into `columns` × `rows` character cells."""

    def __init__(self, picture: PIL.Image.Image, columns: int, rows: int) -> None:
        factor = min(columns / picture.width, 2 * rows / picture.height)
        self._width = max(1, round(picture.width * factor))
        height = max(1, round(picture.height * factor / 2)) * 2
        resampling = PIL.Image.Resampling.BOX if factor < 1 else PIL.Image.Resampling.BICUBIC
        self._picture = picture.convert("RGB").resize((self._width, height), resampling)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        pixels = self._picture.tobytes()
        stride = 3 * self._width
        for top in range(0, len(pixels), 2 * stride):
            for at in range(top, top + stride, 3):
                upper, lower = pixels[at : at + 3], pixels[at + stride : at + stride + 3]
                yield Segment("▀", Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower)))
            yield Segment.line()

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(self._width, self._width)
