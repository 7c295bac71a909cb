"""Workloads of server and peers: orders and their arrivals."""

import io
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from PIL import Image, ImageDraw

Task = Literal["txt2img", "img2img", "inpaint"]
SCHEDULERS = ("euler", "ddim", "dpmpp-2m", "euler-ancestral", "unipc", "pndm", "deis", "lms")
PRESETS = (
    ("euler", 20, 4.0),
    ("dpmpp-2m", 16, 4.0),
    ("ddim", 28, 3.0),
    ("euler-ancestral", 20, 6.0),
    ("unipc", 12, 4.0),
)
SIZES, SHAPES = ("small", "large"), ("circle", "square", "triangle", "star", "heart", "ring")
COLOURS = ("red", "green", "blue", "yellow", "pink", "gray", "white", "black")
PROMPTS = [
    f"a {size} {colour} {shape} and a {second} {other} on a {background} background"
    for size, colour, shape, background, second, other in itertools.product(
        SIZES, COLOURS, SHAPES, COLOURS, COLOURS, SHAPES
    )
    if background not in (colour, second)
]
random.Random(0).shuffle(PROMPTS)


@dataclass(frozen=True)
class Order:
    """One picture to make."""

    seed: int
    scheduler: str = "euler"
    steps: int = 20
    guidance: float = 4.0
    task: Task = "txt2img"
    control: str = ""  # ControlNet name; its map is `edges`
    lora: str = ""
    deterministic: bool = False
    kept: bool = False
    edge: int | None = None  # pixels, of a square; None: the model's own

    @property
    def prompt(self) -> str:
        """Unique per seed of a run, to miss every cache."""
        return PROMPTS[self.seed % len(PROMPTS)]


@dataclass(frozen=True)
class Traffic:
    """Orders, and their load model: closed loop (`clients`, one request at a time each), or open loop (`arrivals`, in
    seconds). With `seconds` the clients of a closed loop ask on and on for so long, and what comes meanwhile counts."""

    orders: Sequence[Order]
    clients: int = 1
    arrivals: Sequence[float] = ()
    seconds: float = 0.0  # 0: until all orders are done

    def endless(self) -> Iterator[Order]:
        """The orders again and again, each time with other prompts and seeds."""
        for start in itertools.count(0, 1 + max(order.seed for order in self.orders)):
            for order in self.orders:
                yield replace(order, seed=start + order.seed)


def uniform(count: int, steps: int = 20) -> list[Order]:
    """Pictures that differ in prompt and seed alone: the best case of request-level batching."""
    return [Order(seed, steps=steps) for seed in range(count)]


def popular(count: int) -> list[Order]:
    """Five settings, as presets of a front end."""
    rng = random.Random(1)
    return [Order(seed, *rng.choice(PRESETS)) for seed in range(count)]


def mixed(count: int) -> list[Order]:
    """Schedulers, step counts (12 to 28, 20 in the mean) and guidance all differ: 40 settings, equally often."""
    return [
        Order(seed, SCHEDULERS[seed % len(SCHEDULERS)], steps=12 + 4 * (seed * 7 % 5), guidance=3.0 + seed % 4)
        for seed in range(count)
    ]


def all_tasks(count: int) -> list[Order]:
    """Text to image, image to image, inpainting, a ControlNet, a LoRA, and all at once, with mixed settings."""
    kinds = [{}, {"task": "img2img"}, {"task": "inpaint"}, {"control": "canny"}, {"lora": "outline"}]
    kinds += [{"task": "img2img", "control": "canny"}, {"lora": "stripes"}]
    return [
        Order(seed, SCHEDULERS[seed % 5], steps=(16, 20, 24)[seed % 3], **kinds[seed % len(kinds)])
        for seed in range(count)
    ]


def poisson(count: int, rate: float, seed: int = 0) -> list[float]:
    """Poisson arrivals: `count` times in seconds, at a mean rate of `rate` per second."""
    rng = random.Random(seed)
    return list(itertools.accumulate(rng.expovariate(rate) for _ in range(count)))


@cache
def picture(size: int = 64) -> Image.Image:
    """The input picture of edits."""
    image = Image.new("RGB", (size, size), "cyan")
    ImageDraw.Draw(image).ellipse(_circle(size), fill="red")
    return image


@cache
def edges(size: int = 64) -> Image.Image:
    """Its edges, as a control map."""
    image = Image.new("RGB", (size, size))
    ImageDraw.Draw(image).ellipse(_circle(size), outline="white")
    return image


def _circle(size: int) -> tuple[int, int, int, int]:
    return size // 8, size // 4, size // 2, size * 5 // 8


@cache
def mask(size: int = 64) -> Image.Image:
    """The inpainting mask."""
    image = Image.new("L", (size, size))
    ImageDraw.Draw(image).rectangle((size // 8, size // 8, size * 5 // 8, size * 5 // 8), fill=255)
    return image


def png(image: Image.Image) -> bytes:
    """PNG bytes."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
