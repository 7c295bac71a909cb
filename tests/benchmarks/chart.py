"""Charts: of throughput and latency against load, and whatever else is lines in panels."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, log10
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

SCALE = 2  # supersampling, for smooth lines
WIDTH, HEIGHT = 560, 360  # pixels of a panel
LEFT, RIGHT, TOP, BOTTOM = 62, 22, 88, 52  # its margins
INK, GRID = "#333333", "#dddddd"
COLOURS = {
    "server": "#1f6feb",
    "(b)": "#d1495b",
    "random": "#999999",
    "least loaded": "#d1495b",
    "affine": "#e09f3e",
    "affine with spill": "#1f6feb",
}
NAMES = {"server": "Darkroom", "(b)": "request-level batching"}


@dataclass(frozen=True)
class Line:
    """Points (x, y) of one system."""

    system: str
    points: Sequence[tuple[float, float]]
    name: str = ""  # appended to the system's
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One diagram."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    logarithmic: bool = False  # y axis
    wide: bool = False  # a logarithmic x axis


def draw(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The chart of the load benchmark's rows: per kind of settings, a throughput and a latency panel."""
    kinds = list(dict.fromkeys(row["settings"] for row in rows))
    sheet(path, [panel for kind in kinds for panel in _panels(kind, [row for row in rows if row["settings"] == kind])])


def sheet(path: Path, panels: Sequence[Panel]) -> None:
    """Two panels a line."""
    chart = Image.new("RGB", (2 * WIDTH * SCALE, ceil(len(panels) / 2) * HEIGHT * SCALE), "white")
    for number, panel in enumerate(panels):
        corner = number % 2 * WIDTH * SCALE, number // 2 * HEIGHT * SCALE
        chart.paste(_Drawing(panel).image, corner)
    chart.resize((chart.width // SCALE, chart.height // SCALE), Image.Resampling.LANCZOS).save(path)


def _panels(kind: str, rows: Sequence[dict[str, Any]]) -> list[Panel]:
    systems = list(dict.fromkeys(row["system"] for row in rows))

    def line(system: str, column: str, name: str = "", dashed: bool = False) -> Line:
        points = [(row["asked/s"], row[column]) for row in rows if row["system"] == system]
        return Line(system, points, name, dashed)

    rates = [line(system, "images/s") for system in systems]
    latencies = [
        line(s, column, name, name == "p50") for s in systems for column, name in (("p99 s", "p99"), ("p50 s", "p50"))
    ]
    asked = "requests a second (Poisson arrivals)"
    return [
        Panel(f"{kind} settings: throughput", asked, "images a second", rates),
        Panel(f"{kind} settings: latency", asked, "seconds", latencies, logarithmic=True),
    ]


class _Drawing:
    """A panel's image. `_place` takes data coordinates, all else is in pixels."""

    def __init__(self, panel: Panel) -> None:
        self.image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), "white")
        self._pen = ImageDraw.Draw(self.image)
        self._panel = panel
        points = [point for line in panel.lines for point in line.points]
        across = [x for x, _ in points]
        self._x_ticks = _powers(min(across), max(across)) if panel.wide else _ticks(0.0, max(across))
        heights = [y for _, y in points]
        self._y_ticks = _powers(min(heights), max(heights)) if panel.logarithmic else _ticks(0.0, max(heights))
        self._axes()
        for line in panel.lines:
            self._draw_line(line)
        for number, line in enumerate({(line.system, line.name): line for line in panel.lines}.values()):
            self._legend(line, number)

    def _place(self, x: float, y: float) -> tuple[float, float]:
        far = _share(x, self._x_ticks, self._panel.wide)
        high = _share(y, self._y_ticks, self._panel.logarithmic)
        return LEFT + far * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - high * (HEIGHT - TOP - BOTTOM)

    def _axes(self) -> None:
        left, right, bottom = self._x_ticks[0], self._x_ticks[-1], self._y_ticks[0]
        for y in self._y_ticks:
            self._stroke(self._place(left, y), self._place(right, y), GRID)
            self._text(LEFT - 8, self._place(left, y)[1], f"{y:g}", "rm")
        for x in self._x_ticks:
            self._text(self._place(x, bottom)[0], HEIGHT - BOTTOM + 8, f"{x:g}", "mt")
        self._stroke(self._place(left, bottom), self._place(right, bottom), INK)
        self._text(LEFT, 14, self._panel.title, "lt", 15)
        self._text(LEFT, TOP - 18, self._panel.y_label, "lt")
        self._text(WIDTH - RIGHT, HEIGHT - 12, self._panel.x_label, "rb")

    def _draw_line(self, line: Line) -> None:
        places = [self._place(*point) for point in line.points]
        for begin, end in pairwise(places):
            for part in range(12 if line.dashed else 1):
                if not line.dashed:
                    self._stroke(begin, end, COLOURS[line.system], 2)
                elif part % 2 == 0:
                    self._stroke(
                        _between(begin, end, part / 12), _between(begin, end, (part + 1) / 12), COLOURS[line.system], 2
                    )
        for x, y in places:
            box = [(x - 3) * SCALE, (y - 3) * SCALE, (x + 3) * SCALE, (y + 3) * SCALE]
            self._pen.ellipse(
                box, fill="white" if line.dashed else COLOURS[line.system], outline=COLOURS[line.system], width=SCALE
            )

    def _legend(self, line: Line, number: int) -> None:
        text = f"{NAMES.get(line.system, line.system)} {line.name}".strip()
        self._text(WIDTH - RIGHT, 10 + 16 * number, text, "rt", colour=COLOURS[line.system])

    def _stroke(self, begin: tuple[float, float], end: tuple[float, float], colour: str, width: int = 1) -> None:
        self._pen.line([(x * SCALE, y * SCALE) for x, y in (begin, end)], fill=colour, width=width * SCALE)

    def _text(self, x: float, y: float, text: str, anchor: str, size: int = 12, colour: str = INK) -> None:
        font = ImageFont.load_default(size * SCALE)
        self._pen.text((x * SCALE, y * SCALE), text, fill=colour, font=font, anchor=anchor)


def _between(begin: tuple[float, float], end: tuple[float, float], part: float) -> tuple[float, float]:
    return begin[0] + (end[0] - begin[0]) * part, begin[1] + (end[1] - begin[1]) * part


def _share(value: float, ticks: Sequence[float], logarithmic: bool) -> float:
    """Where a value is between the first and the last tick."""
    low, high = ticks[0], ticks[-1]
    return log10(value / low) / log10(high / low) if logarithmic else (value - low) / (high - low)


def _ticks(low: float, high: float) -> list[float]:
    """Four to ten round tick values that cover low to high."""
    rough = (high - low) / 5
    unit = 10 ** floor(log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
    return [low + step * number for number in range(ceil((high - low) / step) + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Logarithmic ticks 1, 2, 5, 10, … that cover low to high."""
    steps = [factor * 10.0**power for power in range(floor(log10(low)), ceil(log10(high)) + 1) for factor in (1, 2, 5)]
    first = max(index for index, step in enumerate(steps) if step <= low)
    last = min(index for index, step in enumerate(steps) if step >= high)
    return steps[first : max(last, first + 1) + 1]
