"""Edits, controls and LoRAs: the server's pictures are those of diffusers' pipelines, alone and among strangers.

Each case runs under several schedulers, whose requests are each other's strangers, and first proves that it can fail:
the pipeline with the case's feature switched off makes another picture.
"""

import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from darkroom.v1.edits_pb2 import ImageToImage, Inpaint
from darkroom.v1.parameters_pb2 import ControlSpec, LoraSpec
from tests.darkroom_server.conftest import FAMILIES
from tests.darkroom_server.test_parity import CLASSES
from tests.support import RunningServer, Stream, edit_request, generate_request, png

SIZE, STEPS, SEED, GUIDANCE = 32, 6, 11, 4.0
SCHEDULERS = ("ddim", "euler", "euler-ancestral", "dpmpp-2m", "heun", "unipc", "lcm")
MAX_LEVELS = 1
PROMPT = "a red circle on a blue background"

SOURCE = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
PICTURE = Image.fromarray(SOURCE).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
MASK = Image.new("L", (SIZE, SIZE))
MASK.paste(255, (6, 10, 20, 26))
MAPS = [Image.fromarray(np.random.default_rng(n).integers(0, 2, (SIZE, SIZE, 3), np.uint8) * 255) for n in (1, 2)]


@dataclass(frozen=True)
class Job:
    """One job, said once for the server and for diffusers."""

    model: str = "sd"
    task: str = "txt2img"
    strength: float = 1.0
    padding_crop: int | None = None
    controls: tuple[tuple[str, dict[str, Any]], ...] = ()
    loras: tuple[tuple[str, float], ...] = ()
    scheduler: str = "ddim"
    guidance: float = GUIDANCE
    picture: Any = field(default_factory=lambda: PICTURE)
    mask: Any = field(default_factory=lambda: MASK)
    more: Mapping[str, Any] = field(default_factory=dict)  # for the request

    def request(self) -> Any:
        parameters = dict(
            model=self.model,
            prompt=PROMPT,
            num_inference_steps=STEPS,
            guidance_scale=self.guidance,
            seed=SEED,
            scheduler=self.scheduler,
            loras=[LoraSpec(name=name, weight=weight) for name, weight in self.loras],
            controls=[
                ControlSpec(model=f"{self.model.partition('-')[0]}-{name}", image=png(MAPS[i]), **fields)
                for i, (name, fields) in enumerate(self.controls)
            ],
            **self.more,
        )
        parameters["loras"] = [
            LoraSpec(name=f"{self.model.partition('-')[0]}-{name}", weight=weight) for name, weight in self.loras
        ]
        if self.task == "txt2img":
            return generate_request(width=SIZE, height=SIZE, **parameters)
        edit: dict[str, Any] = {"image_to_image": ImageToImage(strength=self.strength)}
        if self.task == "inpaint":
            inpaint = Inpaint(mask=png(self.mask), strength=self.strength, mask_blur=0, padding_crop=self.padding_crop)
            edit = {"inpaint": inpaint}
        return edit_request(image=png(self.picture), **edit, **parameters)


PIPELINES = {
    ("txt2img", False): "StableDiffusion{}Pipeline",
    ("img2img", False): "StableDiffusion{}Img2ImgPipeline",
    ("inpaint", False): "StableDiffusion{}InpaintPipeline",
    ("txt2img", True): "StableDiffusion{}ControlNetPipeline",
    ("img2img", True): "StableDiffusion{}ControlNetImg2ImgPipeline",
    ("inpaint", True): "StableDiffusion{}ControlNetInpaintPipeline",
}


class Oracle:
    """Diffusers' own pipelines over one copy of each model's weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table: list[tuple[str, int, int]] = []
        self._base = functools.lru_cache(self._load)

    def _load(self, model: str, loras: tuple[tuple[str, float], ...]) -> Any:
        # A pipeline of its own for each set of LoRAs: nothing of one can be left in another.
        base = "Inpaint" if model.endswith("9") else ""
        kind = f"StableDiffusion{'XL' if model.startswith('sdxl') else ''}{base}Pipeline"
        more = {} if model.startswith("sdxl") else {"safety_checker": None}
        pipe = getattr(diffusers, kind).from_pretrained(self.folder / model, **more)
        family = model.partition("-")[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft's, that a second adapter is loaded
            for name, _ in loras:
                pipe.load_lora_weights(self.folder, weight_name=f"{family}-{name}.safetensors", adapter_name=name)
        if loras:
            pipe.set_adapters([name for name, _ in loras], adapter_weights=[weight for _, weight in loras])
        return pipe

    @functools.lru_cache  # noqa: B019
    def _net(self, name: str) -> Any:
        return diffusers.ControlNetModel.from_pretrained(self.folder / name)

    def __call__(self, job: Job) -> np.ndarray:
        return np.asarray(self.run(job), dtype=int)

    def run(self, job: Job, **arguments: Any) -> Any:
        """The first image, with further arguments of the pipeline."""
        return self._pipe(job)(**{**self._arguments(job), **arguments}).images[0]

    def _pipe(self, job: Job) -> Any:
        base, family = self._base(job.model, job.loras), job.model.partition("-")[0]
        kind = PIPELINES[job.task, bool(job.controls)].format("XL" if family == "sdxl" else "")
        nets = [self._net(f"{family}-{name}") for name, _ in job.controls]
        parts = dict(base.components)
        if nets:
            parts["controlnet"] = nets if len(nets) > 1 else nets[0]
        for unused in ("image_encoder", "feature_extractor") if family == "sdxl" else ():
            parts.pop(unused, None)
        more = {} if family == "sdxl" else {"requires_safety_checker": False}
        class_name, options = CLASSES[job.scheduler]
        parts["scheduler"] = getattr(diffusers, class_name).from_config(base.scheduler.config, **options)
        pipe = getattr(diffusers, kind)(**parts, **more)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _arguments(self, job: Job) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "prompt": PROMPT,
            "num_inference_steps": STEPS,
            "guidance_scale": job.guidance,
            "generator": [torch.Generator().manual_seed(SEED)],
        }
        maps = MAPS[: len(job.controls)]
        one = (lambda values: values[0]) if len(maps) == 1 else list
        if job.task == "txt2img":
            arguments |= {"width": SIZE, "height": SIZE} | ({"image": one(maps)} if maps else {})
        else:
            arguments |= {"image": job.picture, "strength": job.strength}
            if maps:
                arguments["control_image"] = one(maps)
            if job.task == "inpaint":
                arguments |= {"mask_image": job.mask, "width": SIZE, "height": SIZE}
                arguments["padding_mask_crop"] = job.padding_crop
        if maps:
            given = [fields for _, fields in job.controls]
            arguments["controlnet_conditioning_scale"] = one([float(fields.get("scale", 1.0)) for fields in given])
            arguments["control_guidance_start"] = one([fields.get("start", 0.0) for fields in given])
            arguments["control_guidance_end"] = one([fields.get("end", 1.0) for fields in given])
            arguments["guess_mode"] = any(fields.get("guess_mode") for fields in given)
        return arguments


EDGES, DEPTH = ("edges", {}), ("depth", {"scale": 0.6})
BIG = Image.fromarray(np.random.default_rng(5).integers(0, 256, (8, 12, 3), np.uint8)).resize((96, 64))
BIG_MASK = Image.new("L", BIG.size)
BIG_MASK.paste(255, (40, 20, 58, 37))

# Name: the job, and what switches its feature off.
CASES: dict[str, tuple[Job, dict[str, Any]]] = {
    "img2img 0.3": (Job(task="img2img", strength=0.34), {"strength": 1.0}),
    "img2img 0.75": (Job(task="img2img", strength=0.75), {"strength": 1.0}),
    "img2img 1.0": (Job(task="img2img", strength=1.0), {"strength": 0.5}),
    "inpaint 0.3": (Job(task="inpaint", strength=0.34), {"task": "img2img"}),
    "inpaint 0.75": (Job(task="inpaint", strength=0.75), {"task": "img2img"}),
    "inpaint 1.0": (Job(task="inpaint"), {"task": "img2img"}),
    "inpaint, 9 channels 0.3": (Job(model="sd-9", task="inpaint", strength=0.34), {"strength": 1.0}),
    "inpaint, 9 channels 0.75": (Job(model="sd-9", task="inpaint", strength=0.75), {"strength": 0.34}),
    "inpaint, 9 channels 1.0": (Job(model="sd-9", task="inpaint"), {"strength": 0.5}),
    "inpaint, padding crop": (
        Job(task="inpaint", padding_crop=4, picture=BIG, mask=BIG_MASK),
        {"mask": Image.new("L", BIG.size, 255)},
    ),
    "controlnet": (Job(controls=(EDGES,)), {"controls": ()}),
    "controlnet, scale and time": (
        Job(controls=(("edges", {"scale": 1.5, "start": 0.2, "end": 0.7}),)),
        {"controls": (EDGES,)},
    ),
    "controlnet, guess mode": (Job(controls=(("edges", {"guess_mode": True}),)), {"controls": (EDGES,)}),
    "two controlnets": (Job(controls=(EDGES, DEPTH)), {"controls": (EDGES,)}),
    "controlnet + img2img": (Job(task="img2img", strength=0.75, controls=(EDGES,)), {"controls": ()}),
    "controlnet + inpaint": (Job(task="inpaint", controls=(EDGES,)), {"controls": ()}),
    "lora": (Job(loras=(("unet-a", 1.0),)), {"loras": ()}),
    "two loras": (Job(loras=(("unet-a", 0.8), ("unet-b", -0.5))), {"loras": (("unet-a", 0.8),)}),
    "lora on the text encoder": (Job(loras=(("text", 1.2),)), {"loras": (("text", 0.2),)}),
    "lora of kohya's format": (Job(loras=(("kohya", 0.7),)), {"loras": (("text", 0.7),)}),
    "two controlnets + inpaint + two loras": (
        Job(task="inpaint", strength=0.75, controls=(EDGES, DEPTH), loras=(("unet-b", 0.7), ("text", 0.5))),
        {"loras": (("unet-b", 0.7),)},
    ),
}


@pytest.fixture(scope="module")
def oracle(folder: Path, request: pytest.FixtureRequest) -> Iterator[Oracle]:
    oracle = Oracle(folder)
    yield oracle
    lines = [f"  {name:44}{alone:8}{among:9}" for name, alone, among in oracle.table]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n\nlargest difference in levels, over all schedulers: alone, among strangers\n" + "\n".join(lines))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CASES)
def test_equals_diffusers(name: str, family: str, edit_server: RunningServer, oracle: Oracle) -> None:
    job, off = CASES[name]
    job = replace(job, model=job.model.replace("sd", family))
    if (name, family) == ("lora of kohya's format", "sdxl"):
        pytest.skip("written for one text encoder")
    # Three schedulers of each case, others for the next one: one of them alone, and all of them together.
    turn = 3 * list(CASES).index(name) + FAMILIES.index(family)
    jobs = [replace(job, scheduler=SCHEDULERS[(turn + number) % len(SCHEDULERS)]) for number in range(3)]
    expected = [oracle(each) for each in jobs]
    other = oracle(replace(jobs[0], **off))
    assert (np.abs(expected[0] - other).max(-1) > 8).mean() >= 0.1, "the case cannot fail"

    alone = [edit_server.start(each.request()).read() for each in jobs[:1]]
    among = read_together([edit_server.start(each.request()) for each in jobs])
    assert max(step.batch_rows for stream in among for step in stream.of("step")) > 2, "nobody shared its batches"
    worst = [largest(alone, expected[:1]), largest(among, expected)]
    oracle.table.append((f"{family}: {name}", *worst))
    assert max(worst) <= MAX_LEVELS


def read_together(streams: Sequence[Stream]) -> Sequence[Stream]:
    return [stream.read() for stream in streams]


def largest(streams: Sequence[Stream], expected: Sequence[np.ndarray]) -> int:
    return max(int(np.abs(s.pixels[0] - e).max()) for s, e in zip(streams, expected, strict=True))
