"""Hostile requests at a server: all get an answer, others go on, and nothing is left of them."""

import asyncio
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from darkroom_client import Client
from tests import hostile
from tests.killable import KillableServer, many
from tests.scraping import late_turns, total
from tests.tiny import save_controlnet, save_lora

HOSTILE = int(many("HOSTILE", 150))
GROWTH = 64 * 2**20  # bytes of memory, of the second half of many


@pytest.fixture
def target(forks: "subprocess.Popen[str]", tiny_model: Path, tmp_path: Path) -> Iterator[KillableServer]:
    """A server that offers what hostile requests name, and little of it."""
    save_controlnet(tmp_path / "edges", tiny_model, seed=20)
    save_lora(tmp_path / "unet-a.safetensors", tiny_model, seed=30)
    served = KillableServer(
        forks,
        tmp_path,
        http=f"unix:{tmp_path / 'http'}",
        models=[{"name": "tiny", "path": tiny_model, "default_num_inference_steps": 3}],
        controlnets=[{"name": "edges", "path": tmp_path / "edges"}],
        loras=[{"name": "unet-a", "path": tmp_path / "unet-a.safetensors"}],
        limits={"max_inference_steps": 8, "max_images": 2, "max_edge": 64, "max_pixels": 64 * 64},
        keep_results_seconds=5,
        max_kept_bytes=2**20,
    )
    served.start()
    yield served
    served.kill()


@pytest.mark.soak
def test_hostile_requests_are_answered(target: KillableServer, tmp_path: Path) -> None:
    def half(seed: int) -> dict[str, int]:
        return asyncio.run(hostile.send(target.address, str(tmp_path / "http"), HOSTILE // 2, seed))

    first, before = half(1), target.memory
    answers = {**first, **(second := half(2))}
    found, grown = target.read(), target.memory - before
    late = late_turns(found, 1)
    print(f"{sum(first.values()) + sum(second.values())} hostile requests, {len(answers)} kinds of answers,", end=" ")
    print(f"event loop over a second late: {late:.0f}, memory of the second half: {grown / 2**20:+.0f} MiB")
    assert hostile.faults(answers) == []
    assert any(answer.endswith(" OK") for answer in answers)
    wait_until_idle(target)
    with Client(target.address) as client:
        assert client.generate("x", num_inference_steps=1).images()
    if HOSTILE >= 5000:  # with fewer, what is filled for the first time is all there is to see
        assert grown < GROWTH
        assert late == 0


def wait_until_idle(server: KillableServer) -> None:
    """Until it has neither jobs nor streams; the test's own time limit ends this."""
    pause = threading.Event()
    while total(found := server.read(), "darkroom_jobs") or total(found, "darkroom_streams_open"):
        pause.wait(0.05)
