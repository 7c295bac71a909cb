"""The compiler as a process of its own, which leaves its code in Inductor's caches."""

import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from darkroom.v1.catalog_service_pb2 import LoadModelRequest
from darkroom_server.networks import compile_process
from darkroom_server.networks.compile_process import CannotPack, pack
from darkroom_server.networks.compiled import compiled, is_compiling
from tests.support import RunningServer
from tests.tiny import save_sd, unet

NETWORK = nn.Sequential(nn.Linear(8, 8), nn.GELU()).requires_grad_(False)


def made(network: nn.Module, rows: torch.Tensor) -> Any:
    """What it makes once it is compiled."""
    network(rows)
    while is_compiling():
        time.sleep(0.01)
    return network(rows)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of Inductor's own imports
@torch.inference_mode()
def test_the_server_finds_all_code_in_the_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    counters.clear()
    network, rows = nn.Sequential(*NETWORK).requires_grad_(False), torch.randn(3, 8)
    expected = network(rows)
    network.forward = compiled(network, background=True)  # type: ignore[method-assign]
    torch.testing.assert_close(made(network, rows), expected)
    more = torch.randn(5, 8)
    torch.testing.assert_close(made(network, more), NETWORK(more))
    assert counters["stats"]["unique_graphs"] == 1
    assert counters["aot_autograd"]["autograd_cache_hit"] == 1
    assert not counters["aot_autograd"]["autograd_cache_miss"]
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_server_finds_its_denoiser_in_the_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `compile = "load"`, and whatever rows and sizes come later."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "caches"))
    torch.compiler.reset()
    small = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    folder = save_sd(tmp_path / "model", block_out_channels=(16,), **small)
    model = {"name": "compiled", "path": folder, "compile": "load", "preload": False}
    request = {"prompt": "x", "seed": 3, "num_inference_steps": 2, "guidance_scale": 4.0}
    with RunningServer(
        models=[model, {**model, "name": "plain", "compile": False}], limits={"max_batch_rows": 4}
    ) as server:
        counters.clear()
        list(server.catalog.LoadModel(LoadModelRequest(model="compiled")))
        for more in ({}, {"num_images": 2}, {"width": 48}):
            expected = server.generate(**request | more, model="plain").pixels
            for _ in range(2):
                assert np.abs(server.generate(**request | more, model="compiled").pixels - expected).max() <= 1
                while is_compiling():
                    time.sleep(0.1)
    assert counters["stats"]["unique_graphs"] == 1
    assert counters["aot_autograd"]["autograd_cache_hit"] == 1
    assert not counters["aot_autograd"]["autograd_cache_miss"]
    assert not counters["inductor"]["fxgraph_cache_miss"]
    torch.compiler.reset()


def test_keys_of_the_caches_do_not_depend_on_what_is_imported_first() -> None:
    keys = set()
    for first in ("pass", "import darkroom_plugins.deferred"):
        script = f"""
{first}
import torch
from torch._inductor.codecache import FxGraphCachePickler
from darkroom_server.networks import dynamo
pickler = FxGraphCachePickler(torch.fx.GraphModule({{}}, torch.fx.Graph()))
print(pickler.get_hash([torch.channels_last, torch.contiguous_format]))
"""
        keys.add(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert len(keys) == 1


def test_weights_are_not_sent() -> None:
    network, plain = unet(), unet(block_out_channels=(32, 64))
    packed = [len(pack(each.requires_grad_(False), (torch.randn(2, 4, 16, 16),), {})) for each in (network, plain)]
    assert abs(packed[0] - packed[1]) < 1000
    assert packed[0] < sum(weight.nbytes for weight in network.parameters())


@pytest.mark.parametrize("what", ["a class of its own", "quantized weights"])
def test_what_cannot_be_sent_is_compiled_here(
    what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Own(nn.Sequential):
        pass

    class Quantized(torch.Tensor):
        pass

    network = Own(*NETWORK) if what == "a class of its own" else nn.Sequential(*NETWORK)
    if what == "quantized weights":
        network.register_buffer("codes", torch.zeros(3).as_subclass(Quantized))
    with pytest.raises(CannotPack, match=r"cannot be pickled|Quantized"):
        pack(network, (), {})
    found = _compiled_here(network, monkeypatch, caplog)
    assert "own process" in found


def test_a_compiler_that_ends_early_is_of_no_harm(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compile_process, "COMMAND", (sys.executable, "-c", "raise SystemExit('no room')"))
    with pytest.raises(ChildProcessError, match="no room"):
        compile_process.compile_elsewhere(NETWORK, (torch.randn(3, 8),), {})
    assert _compiled_here(NETWORK, monkeypatch, caplog).endswith("ended with 1: no room")


def test_a_compiler_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_process, "COMMAND", (sys.executable, "-c", "import time; time.sleep(20)"))
    monkeypatch.setattr(compile_process, "PATIENCE", 0.1)
    with pytest.raises(ChildProcessError, match="ended with -9"):
        compile_process.compile_elsewhere(NETWORK, (torch.randn(3, 8),), {})


@torch.inference_mode()
def test_what_kills_the_compiler_is_not_tried_here(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For instance want of memory."""
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    monkeypatch.setattr(compile_process, "COMMAND", (sys.executable, "-c", killed))
    tried = list[Any]()
    monkeypatch.setattr("darkroom_server.networks.compiled.compile_lazily", lambda network: tried.append)
    network, rows = nn.Sequential(*NETWORK), torch.randn(3, 8)
    network.forward = compiled(network, background=True)  # type: ignore[method-assign]
    torch.testing.assert_close(made(network, rows), NETWORK(rows))
    assert not tried
    [record] = caplog.records
    assert "it runs eagerly" in record.getMessage()
    assert "ended with -9" in caplog.text


def test_the_terminals_signals_are_not_the_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = "import os; raise SystemExit('alone' if os.getpgrp() == os.getpid() else 'beside the server')"
    monkeypatch.setattr(compile_process, "COMMAND", (sys.executable, "-c", alone))
    with pytest.raises(ChildProcessError, match="alone"):
        compile_process.compile_elsewhere(NETWORK, (torch.randn(3, 8),), {})


@torch.inference_mode()
def _compiled_here(network: nn.Module, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> str:
    """What the log says, once it has been compiled for a call by a stand-in for Inductor."""
    compile_, graphs = torch.compile, []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda network, **options: compile_(network, backend=backend, **options))
    copy = nn.Sequential(network)
    copy.forward = compiled(copy, background=True)  # type: ignore[method-assign]
    with caplog.at_level(logging.INFO):
        made(copy, torch.randn(3, 8))
    assert len(graphs) == 1
    torch.compiler.reset()
    return next(record.getMessage() for record in caplog.records if "own process" in record.getMessage())
