"""On a CUDA device: the same pictures as diffusers there, every scheduler, and memory that comes back.

Run with `python -m pytest -m gpu`; skipped without a device.
"""

import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from darkroom.v1.catalog_service_pb2 import UnloadModelRequest
from darkroom.v1.edits_pb2 import ImageToImage, Inpaint
from darkroom.v1.parameters_pb2 import ControlSpec, LoraSpec
from darkroom_plugins.builtin.families.unet import UNetFamily
from darkroom_plugins.builtin.schedulers import ENTRIES
from darkroom_plugins.sample import Evaluation
from darkroom_server.networks.compiled import is_compiling
from tests.support import RunningServer, edit_request, generate_request, png
from tests.tiny import save_controlnet, save_lora

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

REQUEST = {"prompt": "a red circle", "seed": 7, "num_inference_steps": 8, "guidance_scale": 5.0}


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[RunningServer]:
    models = [{"name": "full", "path": tiny_model, "dtype": "float32"}, {"name": "half", "path": tiny_model}]
    with RunningServer(models=models, device="cuda", allow_tf32=False) as running:
        yield running


def sync_debug_mode(mode: str) -> None:
    """It says each time that it is a prototype."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode(mode)


@pytest.mark.parametrize("name", [entry.name for entry in ENTRIES])
def test_equals_diffusers_on_the_device(name: str, server: RunningServer, tiny_model: Path) -> None:
    from diffusers import StableDiffusionPipeline

    from darkroom_plugins.request import SchedulerChoice

    pipe = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None).to("cuda")
    pipe.set_progress_bar_config(disable=True)
    entry = next(entry for entry in ENTRIES if entry.name == name)
    pipe.scheduler = entry.build(pipe.scheduler.config, SchedulerChoice(name=name))
    arguments = {key: value for key, value in REQUEST.items() if key != "seed"}
    expected = np.asarray(pipe(**arguments, generator=torch.Generator().manual_seed(7)).images[0], dtype=int)
    stranger = server.start(generate_request(prompt="stranger", num_inference_steps=100))
    stranger.read_until("step")
    ours = server.generate(**REQUEST, scheduler=name)
    stranger.call.cancel()
    assert max(step.batch_rows for step in ours.of("step")) > 2
    assert np.abs(ours.pixels[0] - expected).max() <= 2


def test_edits_controls_and_loras_on_the_device(tiny_model: Path, tmp_path: Path) -> None:
    """In single precision as on the CPU, where they are compared with diffusers; in half precision close to it."""
    net, lora = (
        save_controlnet(tmp_path / "net", tiny_model, seed=1),
        save_lora(tmp_path / "l.safetensors", tiny_model, 2),
    )
    picture = png(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    mask = np.zeros((32, 32), np.uint8)
    mask[4:20, 6:24] = 255
    kinds: list[dict[str, Any]] = [
        {"image_to_image": ImageToImage(strength=0.7)},
        {"inpaint": Inpaint(mask=png(mask), keep_unmasked=True)},
        {"controls": [ControlSpec(model="net", image=picture)], "loras": [LoraSpec(name="lora", weight=0.8)]},
    ]
    results = []
    for device, dtype in (("cpu", "float32"), ("cuda", "float32"), ("cuda", "float16")):
        with RunningServer(
            models=[{"name": "tiny", "path": tiny_model, "dtype": dtype}],
            controlnets=[{"name": "net", "path": net}],
            loras=[{"name": "lora", "path": lora}],
            device=device,
            allow_tf32=False,
        ) as running:
            streams = [running.start(edit_request(**REQUEST, image=picture, **kind)) for kind in kinds]
            results.append([stream.read().pixels for stream in streams])
    for cpu, full, half in zip(*results, strict=True):
        assert np.abs(cpu - full).max() <= 2
        assert np.abs(cpu - half).mean() < 4


def test_half_precision_is_close(server: RunningServer) -> None:
    full, half = (server.generate(**REQUEST, model=model).pixels for model in ("full", "half"))
    assert np.abs(full - half).mean() < 4


def test_a_step_never_waits_for_the_device(server: RunningServer) -> None:
    """With edits, which blend at each step, and a preview of each; all but the first steps, which may load kernels."""
    picture = png(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    mask = np.zeros((32, 32), np.uint8)
    mask[4:20, 6:24] = 255
    request = {"prompt": "x", "num_inference_steps": 200, "scheduler": "euler-ancestral"}
    streams = [
        server.start(generate_request(**request)),
        server.start(generate_request(**request | {"scheduler": "unipc"})),
        server.start(edit_request(**request, image=picture, inpaint=Inpaint(mask=png(mask)))),
    ]
    for stream in streams:
        stream.read_until("step")
        stream.read_until("preview")
    sync_debug_mode("error")
    try:
        for stream in streams:
            for _ in range(20):
                stream.read_until("step")
    finally:
        sync_debug_mode("default")
    assert all(len(stream.read().pixels) == 1 for stream in streams)


def test_pictures_decoded_beside_steps_are_right(server: RunningServer) -> None:
    """Many, of which each is decoded while others go on, and whose memory is used again at once."""
    requests = [{**REQUEST, "seed": seed, "num_inference_steps": 4 + seed % 5, "model": "full"} for seed in range(24)]
    expected = [server.generate(**request).pixels for request in requests]
    for stream, alone in zip([server.start(generate_request(**each)) for each in requests], expected, strict=True):
        assert np.abs(stream.read().pixels - alone).max() <= 2


def test_a_model_that_leaves_is_used_to_the_end(server: RunningServer) -> None:
    from darkroom.v1 import catalog_service_pb2 as pb

    expected = server.generate(**REQUEST, model="full").pixels
    for _ in range(5):
        made = server.generate(**REQUEST, model="full")
        server.catalog.UnloadModel(pb.UnloadModelRequest(model="full"))
        list(server.catalog.LoadModel(pb.LoadModelRequest(model="half")))
        assert np.abs(made.pixels - expected).max() <= 2


def test_memory_comes_back(server: RunningServer) -> None:
    server.generate(**REQUEST)
    before = torch.cuda.memory_allocated()
    for seed in range(5):
        stream = server.start(generate_request(prompt="x", seed=seed, num_inference_steps=200, num_images=8))
        stream.read_until("step")
        stream.call.cancel()
    while not server.app.engine.idle:
        server.generate(prompt="x", num_inference_steps=1)
    assert torch.cuda.memory_allocated() - before < 2**20


def test_parked_models_come_back_the_same_beside_running_jobs(tiny_model: Path) -> None:
    models = [{"name": name, "path": tiny_model, "dtype": "float32"} for name in ("a", "b", "c")]
    weight = 2**26  # more than one of them, less than three
    with RunningServer(models=models, device="cuda", park_budget=2**30, allow_tf32=False) as server:
        expected = server.generate(**REQUEST, model="a").pixels
        (holding,) = [each for each in server.app.residency.holdings.values() if each.key == ("model", "b")]
        assert holding.parked_bytes >= holding.device_bytes
        assert holding.parked_bytes % weight == 0
        stream = server.start(generate_request(prompt="x", num_inference_steps=400, model="a"))
        stream.read_until("step")
        for _ in range(3):
            server.run(server.app.residency.relieve())
            assert holding.residency.value == "parked"
            for model in ("b", "c"):
                assert np.abs(server.generate(**REQUEST, model=model).pixels - expected).max() <= 2
        stream.call.cancel()


def test_weights_are_loaded_on_a_stream_of_their_own(tiny_model: Path) -> None:
    """A copy from pageable memory would wait on the host for the stream that it is on."""
    from darkroom_plugins.uploads import uploading

    device = torch.device("cuda")
    busy = torch.cuda.Event()
    torch.cuda._sleep(2_000_000_000)  # cycles: about a second
    busy.record()
    sent = [torch.randn(300, 301, generator=torch.Generator().manual_seed(seed)) for seed in range(50)]
    with uploading(device) as uploader:
        assert uploader is not None
        arrived = [uploader.copy(each, torch.float16) for each in sent]
    assert not busy.query()
    for each, copy in zip(sent, arrived, strict=True):
        assert torch.equal(copy.cpu(), each.half())


def test_offloaded_networks_are_pinned(tiny_model: Path) -> None:
    models = [{"name": "full", "path": tiny_model, "dtype": "float32"}]
    models.append({**models[0], "name": "offloaded", "offload": "model"})
    with RunningServer(models=models, device="cuda", allow_tf32=False) as server:
        expected = server.generate(**REQUEST, model="full").pixels
        for _ in range(2):
            assert np.abs(server.generate(**REQUEST, model="offloaded").pixels - expected).max() <= 2
        family = server.app.catalog.models["offloaded"].family
        weights = [tensor for network in family.components.values() for tensor in network.state_dict().values()]
        assert all(tensor.is_cuda or tensor.is_pinned() for tensor in weights)


def test_batches_have_few_sizes_which_are_warmed_up(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: set[int] = set()
    predict = UNetFamily.predict

    def counting(family: UNetFamily, evaluation: Evaluation) -> torch.Tensor:
        sizes.add(len(evaluation.latents))
        return predict(family, evaluation)

    monkeypatch.setattr(UNetFamily, "predict", counting)
    models = [{"name": "full", "path": tiny_model, "dtype": "float32"}]
    with RunningServer(models=models, device="cuda", allow_tf32=False) as server:
        assert sizes == {1, 2, 4, 8, 16, 32}
        expected = server.generate(**REQUEST).pixels
        others = [generate_request(prompt="x", seed=seed, num_inference_steps=3 + seed % 5) for seed in range(12)]
        ours, *strangers = server.together([generate_request(**REQUEST), *others])
        assert np.abs(ours.read().pixels - expected).max() <= 2
        for stream in strangers:
            stream.read()
    assert sizes == {1, 2, 4, 8, 16, 32}


def test_evaluations_of_few_rows_are_recorded(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another model is loaded, and with LoRAs in between; their memory comes back with the model's."""
    replays, replay = [], torch.cuda.CUDAGraph.replay

    def counting(graph: torch.cuda.CUDAGraph) -> None:
        replays.append(graph)
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counting)
    lora = save_lora(tmp_path / "lora.safetensors", tiny_model, 2)
    one = {"path": tiny_model, "dtype": "float32"}
    models = [{**one, "name": "plain"}, {**one, "name": "graphs", "cuda_graphs": True}, {**one, "name": "other"}]
    models[-1]["preload"] = False
    loras = [{"name": "lora", "path": lora}]
    kinds: list[dict[str, Any]] = [{}, {"guidance_scale": 1.0}, {"num_images": 3}]
    kinds += [{"loras": [LoraSpec(name="lora", weight=0.8)]}, {"num_images": 2, "width": 48}]
    with RunningServer(models=models, loras=loras, device="cuda", allow_tf32=False) as server:
        expected = [server.generate(**REQUEST | more, model="plain").pixels for more in kinds]
        loading = server.start(generate_request(**REQUEST, model="other"))
        for _ in range(2):
            made = [server.generate(**REQUEST | more, model="graphs").pixels for more in kinds]
            streams = [server.start(generate_request(**REQUEST | more, model="graphs")) for more in kinds]
            made += [stream.read().pixels for stream in streams]
            for ours, plain in zip(made, expected * 2, strict=True):
                assert max(np.abs(a - b).max() for a, b in zip(ours, plain, strict=True)) <= 2
        loading.read()
        assert len(set(replays)) >= 4
        replays.clear()
        before = torch.cuda.memory_allocated()
        server.catalog.UnloadModel(UnloadModelRequest(model="graphs"))
        assert torch.cuda.memory_allocated() < before


def test_the_compiler_is_another_process(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    models = [{"name": "compiled", "path": tiny_model, "compile": True}, {"name": "plain", "path": tiny_model}]
    with RunningServer(models=models, device="cuda") as server:
        expected = server.generate(**REQUEST, model="plain").pixels
        counters.clear()
        for _ in range(2):
            assert np.abs(server.generate(**REQUEST, model="compiled").pixels - expected).mean() < 4
            while is_compiling():
                time.sleep(0.1)
    assert counters["aot_autograd"]["autograd_cache_hit"] or counters["inductor"]["fxgraph_cache_hit"]
    assert not counters["inductor"]["fxgraph_cache_miss"]
