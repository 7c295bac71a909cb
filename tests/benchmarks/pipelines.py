"""diffusers' pipelines for all tasks, on one copy of the weights (and one more with LoRAs)."""

import statistics
import time
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch

from darkroom_demo import CONTROLNET_PATH, LORA_PATHS
from darkroom_plugins.builtin.schedulers import ENTRIES
from darkroom_plugins.request import SchedulerChoice
from tests.benchmarks.workload import Order, Task, edges, mask, picture

BY_NAME = {entry.name: entry for entry in ENTRIES}
CLASSES: dict[tuple[Task, bool], Any] = {
    ("img2img", False): diffusers.StableDiffusionImg2ImgPipeline,
    ("inpaint", False): diffusers.StableDiffusionInpaintPipeline,
    ("txt2img", True): diffusers.StableDiffusionControlNetPipeline,
    ("img2img", True): diffusers.StableDiffusionControlNetImg2ImgPipeline,
}


class Pipelines:
    """Static batches, as in the handler of a simple server. Pipelines are created lazily; with `compiled`, the denoiser
    of those without LoRAs is compiled as in the server."""

    def __init__(self, model: Path, device: str, dtype: torch.dtype, compiled: bool) -> None:
        quiet()
        self._compiled = compiled
        self._where = {"device": device, "dtype": dtype}
        self._model = model
        self._pipe = cache(self._build)
        self._config = self._pipe("txt2img", False, False).scheduler.config

    def make(self, orders: Sequence[Order]) -> None:
        """The pictures of orders that differ in prompt and seed alone."""
        first = orders[0]
        pipe = self._pipe(first.task, bool(first.control), bool(first.lora))
        pipe.scheduler = self._scheduler(first)
        if first.lora:
            pipe.set_adapters(first.lora)
        pipe(
            [order.prompt for order in orders],
            num_inference_steps=first.steps,
            guidance_scale=first.guidance,
            generator=[torch.Generator().manual_seed(order.seed) for order in orders],
            **_pictures(first, len(orders)),
        )

    def fastest_threads(self) -> int:
        """The faster of one thread and torch's default, for one picture: hyperthreads of one core only wait for each
        other."""
        counts = sorted({1, torch.get_num_threads()})
        seconds: dict[int, list[float]] = {threads: [] for threads in counts}
        for seed in range(8):  # interleaved, as a machine's speed drifts
            for threads in counts:
                torch.set_num_threads(threads)
                seconds[threads].append(self._seconds(Order(seed)))
        return min(counts, key=lambda threads: statistics.median(seconds[threads][1:]))

    def _seconds(self, order: Order) -> float:
        began = time.perf_counter()
        self.make([order])
        return time.perf_counter() - began

    def row_evaluations(self, order: Order) -> int:
        """Rows × denoiser evaluations of a text to image order; some schedulers evaluate more than once a step."""
        scheduler = self._scheduler(order)
        scheduler.set_timesteps(order.steps)
        return len(scheduler.timesteps) * (2 if order.guidance > 1 else 1)

    def _scheduler(self, order: Order) -> Any:
        return BY_NAME[order.scheduler].build(self._config, SchedulerChoice(name=order.scheduler))

    def _build(self, task: Task, control: bool, lora: bool) -> Any:
        if lora or (task, control) == ("txt2img", False):
            pipe: Any = diffusers.DiffusionPipeline.from_pretrained(self._model, dtype=self._where["dtype"])
        else:
            parts = {
                **self._pipe("txt2img", False, False).components,
                **({"controlnet": self._net()} if control else {}),
            }
            pipe = CLASSES[task, control](**parts, requires_safety_checker=False)
        for name, path in LORA_PATHS.items() if lora else ():
            pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name=name)
        pipe.set_progress_bar_config(disable=True)
        pipe.to(self._where["device"])
        if self._where["device"] != "cpu" and pipe.unet.config.sample_size >= 128:
            pipe.vae.enable_slicing()  # 16 pictures of SDXL at once, in single precision, do not fit beside the server
        if self._compiled and (task, control, lora) == ("txt2img", False, False):  # others share its networks
            pipe.unet.compile(dynamic=True)
        return pipe

    @cache  # noqa: B019  # there is one object
    def _net(self) -> Any:
        return diffusers.ControlNetModel.from_pretrained(CONTROLNET_PATH, dtype=self._where["dtype"])


def quiet() -> None:
    """Silence diffusers' log and progress bars."""
    diffusers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")


def _pictures(order: Order, count: int) -> dict[str, Any]:
    """The arguments specific to a task."""
    control = {"control_image" if order.task == "img2img" else "image": [edges()] * count} if order.control else {}
    match order.task:
        case "txt2img":
            return control
        case "img2img":
            return {"image": [picture()] * count, "strength": 0.8, **control}
        case "inpaint":
            return {"image": [picture()] * count, "mask_image": [mask()] * count, "strength": 1.0}
