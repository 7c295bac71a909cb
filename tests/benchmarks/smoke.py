"""A few pictures of the demo model by `darkroom serve` on the device, beside the same by its CPU."""

from typing import Any

import numpy as np

from tests.benchmarks.bench import Bench
from tests.benchmarks.served import Served
from tests.benchmarks.workload import Order

PREVIEW = "full-vae"
ORDERS = {
    "text to image": Order(7, steps=12),
    "ancestral": Order(7, "euler-ancestral", steps=12),
    "image to image": Order(7, steps=12, task="img2img"),
    "inpainting": Order(7, steps=12, task="inpaint"),
    "ControlNet": Order(7, steps=12, control="canny"),
    "LoRA": Order(7, steps=12, lora="outline"),
    "full-vae previews": Order(7, steps=12),
}
LEVELS = {"float32": 1.0, "float16": 6.0}  # of the CPU's, in the mean


def measure(bench: Bench) -> dict[str, Any]:
    """Differences from the CPU's pictures in float32, in levels of 255: [largest, mean] of each kind."""
    device = bench.options.device
    expected = _pictures(bench, "cpu", "float32")
    for dtype in LEVELS if bench.cuda else ("float32",):
        apart = {}
        for kind, picture in _pictures(bench, device, dtype).items():
            difference = np.abs(picture - expected[kind])
            apart[kind] = [float(difference.max()), float(difference.mean())]
        bench.note(f"levels from the CPU in {dtype}", apart)
        worst = max(mean for _, mean in apart.values())
        bars = {"cpu": LEVELS[dtype], "cuda": LEVELS[dtype]}
        bench.hold(f"smoke pictures in {dtype}: mean levels from the CPU", worst, at_most=bars)
    return bench.parts["smoke"]  # type: ignore[no-any-return]


def _pictures(bench: Bench, device: str, dtype: str) -> dict[str, Any]:
    """(height, width, 3) each."""
    served = Served(None, device, dtype, settings={"DARKROOM_ALLOW_TF32": "false"})
    try:
        made = {kind: served.picture(order, PREVIEW if PREVIEW in kind else "off") for kind, order in ORDERS.items()}
        bench.options.out.mkdir(exist_ok=True, parents=True)
        made["text to image"].save(bench.options.out / f"smoke-{device.partition(':')[0]}-{dtype}.png")
        return {kind: np.asarray(picture, dtype=float) for kind, picture in made.items()}
    finally:
        if said := served.log:
            print(said[-3000:], flush=True)
        served.stop()
