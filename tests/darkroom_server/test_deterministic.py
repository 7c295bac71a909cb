"""Deterministic jobs: the same bytes in any company and after a restart, and those of diffusers' pipelines."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from darkroom.v1.parameters_pb2 import LoraSpec
from darkroom_plugins.builtin.schedulers import ENTRIES
from darkroom_plugins.request import SchedulerChoice
from tests.darkroom_server.test_edit_parity import CLASSES, DEPTH, EDGES, Job, Oracle
from tests.support import RunningServer, generate_request
from tests.tiny import save_lora

GUESSED = ("edges", {"guess_mode": True})
JOBS: dict[str, Job] = {
    "txt2img": Job(scheduler="euler-ancestral"),
    "guidance off": Job(scheduler="heun", guidance=1.0),
    "guidance for some steps": Job(scheduler="unipc", more={"guidance_end": 0.5}),
    "cached layers": Job(scheduler="euler", more={"cache_interval": 2}),
    "img2img": Job(task="img2img", strength=0.75, scheduler="dpmpp-2m"),
    "inpaint": Job(task="inpaint", scheduler="ddim"),
    "controlnet": Job(controls=(EDGES,), scheduler="lcm"),
    "controlnet at times": Job(controls=(("edges", {"start": 0.2, "end": 0.7}), DEPTH), scheduler="ddim"),
    "guess mode": Job(controls=(GUESSED,), scheduler="dpmpp-2m"),
    "lora": Job(loras=(("unet-a", 0.8),), scheduler="euler"),
    "lora of the text encoder": Job(loras=(("text", 1.2), ("unet-b", 0.3)), scheduler="heun"),
    "sdxl": Job(model="sdxl", scheduler="euler"),
}
STRANGERS = [
    Job(scheduler="ddim", guidance=1.0),
    Job(task="img2img", strength=0.5, scheduler="euler-ancestral"),
    Job(loras=(("unet-b", 0.5),), controls=(DEPTH,)),
    Job(model="sdxl", scheduler="unipc"),
]
TOGETHER = ("txt2img", "guidance off", "controlnet", "lora")  # beside others of their own kind, too


def serve(folder: Path, **settings: Any) -> RunningServer:
    nets, loras = ("sd-edges", "sd-depth"), ("sd-unet-a", "sd-unet-b", "sd-text")
    return RunningServer(
        models=[{"name": name, "path": folder / name} for name in ("sd", "sdxl")],
        controlnets=[{"name": name, "path": folder / name} for name in nets],
        loras=[{"name": name, "path": folder / f"{name}.safetensors"} for name in loras],
        **settings,
    )


def request(job: Job, deterministic: bool = True, **changes: Any) -> Any:
    made = job.request()
    made.deterministic = deterministic
    for name, value in changes.items():
        setattr(made.parameters, name, value)
    return made


def pictures(server: RunningServer, jobs: Mapping[str, Job]) -> dict[str, dict[int, bytes]]:
    """Each job's files, one after the other."""
    return {name: server.start(request(job)).read().files() for name, job in jobs.items()}


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_bytes_depend_neither_on_company_nor_on_the_process(threads: int, folder: Path) -> None:
    jobs = JOBS if threads == 1 else {name: JOBS[name] for name in TOGETHER}
    with serve(folder, threads=threads) as server:
        alone = pictures(server, jobs)
    with serve(folder, threads=threads) as server:
        own = [request(job) for job in jobs.values()]
        ordinary = [request(job, deterministic=False) for job in STRANGERS]
        alike = [request(jobs[name], seed=seed) for name in TOGETHER for seed in range(2)]
        streams = server.together([*own, *ordinary, *alike])
        among = dict(zip(jobs, (stream.read().files() for stream in streams), strict=False))
        for stream in streams[len(jobs) :]:
            stream.read()
        again = [server.start(request(jobs[name])) for name in TOGETHER]  # each joins while others are under way
        later = dict(zip(TOGETHER, (stream.read().files() for stream in again), strict=True))
    assert {name: among[name] == alone[name] for name in jobs} == dict.fromkeys(jobs, True)
    assert {name: later[name] == alone[name] for name in TOGETHER} == dict.fromkeys(TOGETHER, True)


def test_deterministic_jobs_share_batches(folder: Path) -> None:
    with serve(folder) as server:
        streams = server.together([request(JOBS["txt2img"], seed=seed) for seed in range(3)])
        assert {step.batch_rows for stream in streams for step in stream.read().of("step")} == {6}


class SameLayout(Oracle):
    """Diffusers' pipelines with their weights where the server has them: convolutions round otherwise in another
    layout, products of few rows where a weight begins at another address of a mapped file."""

    def run(self, job: Job, **arguments: Any) -> Any:
        before = torch.get_num_threads()
        torch.set_num_threads(1)  # as the server's
        try:
            return super().run(job, **arguments)
        finally:
            torch.set_num_threads(before)

    def _load(self, model: str, loras: tuple[tuple[str, float], ...]) -> Any:
        pipe = super()._load(model, loras)
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                _copy_weights(part)
        return pipe

    def _net(self, name: str) -> Any:
        net = super()._net(name)
        _copy_weights(net)
        return net


def _copy_weights(network: torch.nn.Module) -> None:
    for weight in network.parameters():
        layout = torch.channels_last if weight.dim() == 4 else torch.preserve_format
        weight.data = weight.data.clone(memory_format=layout)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    with serve(folder) as running:
        yield running


@pytest.mark.parametrize("task", ["txt2img", "img2img", "inpaint", "controlnet", "sdxl"])
def test_equals_diffusers_to_the_last_bit(task: str, server: RunningServer, folder: Path) -> None:
    """Every scheduler, all together: what shares a batch changes nothing."""
    base, oracle = replace(JOBS[task], strength=0.75), SameLayout(folder)
    adds_noise = base.task != "txt2img"
    jobs = {
        name: replace(base, scheduler=name)
        for name, (kind, _) in CLASSES.items()
        if not adds_noise or hasattr(getattr(diffusers, kind), "add_noise")
    }
    expected = {name: oracle(job) for name, job in jobs.items()}
    streams = server.together([request(job) for job in jobs.values()])
    made = dict(zip(jobs, (stream.read().pixels[0] for stream in streams), strict=True))
    assert {name: int(np.abs(made[name] - expected[name]).max()) for name in jobs} == dict.fromkeys(jobs, 0)


def test_without_guidance_a_bucket_of_one_row_equals_diffusers(folder: Path) -> None:
    job = replace(JOBS["txt2img"], guidance=1.0)
    with serve(folder, deterministic_rows=1) as server:
        made = server.start(request(job)).read().pixels[0]
    assert np.array_equal(made, SameLayout(folder)(job))


def test_a_lora_on_the_layers_of_timesteps(tiny_model: Path, tmp_path: Path) -> None:
    """Which are computed aside without one."""
    layers = ("linear_1", "linear_2", "time_emb_proj")
    file = save_lora(tmp_path / "time.safetensors", tiny_model, 3, layers_of_unet=layers)
    parameters = {"prompt": "a red circle", "num_inference_steps": 4, "guidance_scale": 4.0, "scheduler": "ddim"}
    lora = {"loras": [LoraSpec(name="time", weight=0.8)]}

    def started(seed: int, **more: Any) -> Any:
        return generate_request(**parameters, seed=seed, **{"deterministic": True, **lora, **more})

    models, loras = [{"name": "tiny", "path": tiny_model}], [{"name": "time", "path": file}]
    with RunningServer(models=models, loras=loras) as server:
        alone = server.start(started(1)).read()
        company = [started(2), started(3), started(4), started(5, loras=[]), started(6, deterministic=False)]
        first, *others = [stream.read() for stream in server.together([started(1), *company])]
        without = server.start(started(1, loras=[])).read()
    assert first.files() == alone.files()
    assert len({each.files()[0] for each in others}) == len(others)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    entry = next(each for each in ENTRIES if each.name == "ddim")
    pipe.scheduler = entry.build(pipe.scheduler.config, SchedulerChoice(name="ddim"))
    pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name="time")
    pipe.set_adapters(["time"], adapter_weights=[0.8])
    del parameters["scheduler"]
    expected = np.asarray(pipe(**parameters, generator=torch.Generator().manual_seed(1)).images[0], dtype=int)
    assert np.abs(alone.pixels[0] - expected).max() <= 1
    assert np.abs(without.pixels[0] - expected).max() > 10
