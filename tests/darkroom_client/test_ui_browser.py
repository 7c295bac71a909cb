"""`darkroom ui` in headless Chromium, against a real server of the demo model."""

import functools
import itertools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from darkroom_client import Client, read_recipe
from darkroom_client.catalog import Job
from darkroom_server.config.demo import with_demo
from darkroom_server.config.presets import PresetSettings
from darkroom_server.config.settings import Settings
from tests.darkroom_client.browsing import Browser, page_of
from tests.node import ROOT, needs_npm
from tests.support import RunningServer, settle

pytestmark = needs_npm
QUICK = PresetSettings(
    description="Seven steps.",
    scheduler="dpmpp-2m",
    num_inference_steps=7,
    guidance_scale=2.5,
    loras={"stripes": 0.5},
)
pytest.importorskip("gradio")


@pytest.fixture(scope="module")
def demo() -> Iterator[RunningServer]:
    offered = with_demo(Settings())
    model = offered.models[0].model_copy(update={"presets": {"quick": QUICK}})
    with RunningServer(models=[model], loras=offered.loras, controlnets=offered.controlnets) as server:
        yield server


@pytest.fixture(scope="module")
def page(demo: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page's address."""
    wildcards = tmp_path_factory.mktemp("wildcards")
    (wildcards / "colour.txt").write_text("red\nblue\n")
    with page_of(demo.address, "--wildcards", wildcards) as (url, said):
        yield url
    assert said[1:] == ["interrupted\n"]


@pytest.fixture
def drive(browser: Browser, page: str, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs a scenario of tests/browser/ui.mjs. No host but the page's is asked for anything."""
    return functools.partial(browser.run, "ui", url=page, folder=tmp_path, hosts=set())


@pytest.fixture
def new_jobs(demo: RunningServer) -> Iterator[Callable[[], list[Job]]]:
    """The server's jobs since the test began, newest first."""
    with Client(demo.address) as client:
        before = {job.request_id for job in client.jobs()}
        yield lambda: [job for job in client.jobs() if job.request_id not in before]


def test_a_picture_develops(drive: Callable[..., Any], tmp_path: Path) -> None:
    seen = drive("develop")
    assert seen["previews"] >= 3
    assert "a large yellow star" in seen["details"]
    assert f"Seed{seen['seed']}" in seen["details"].replace(" ", "")
    assert seen["below"] <= 800  # the gallery is seen whole on a desk's screen
    assert seen["wide"] == 390  # nothing sticks out on a phone
    assert "Describe a picture" in seen["empty"]
    assert read_recipe(tmp_path / "saved.png")
    for name in ("desk.png", "phone.png"):
        Image.open(tmp_path / name).load()
    for (_, end), (begin, _) in itertools.pairwise(seen["places"]):
        assert -1 <= begin - end < 200  # on a phone one below the other, without holes between


def test_escape_stops_the_job_on_the_server(
    drive: Callable[..., Any], new_jobs: Callable[[], list[Job]], demo: RunningServer
) -> None:
    assert drive("stop")["status"].startswith("Stopped after step ")
    settle(demo)
    (job,) = new_jobs()
    assert job.state == "cancelled"
    assert 0 < job.step < 150


def test_a_drawn_mask_is_repainted(drive: Callable[..., Any], tmp_path: Path) -> None:
    picture = Image.new("RGB", (64, 64), (30, 60, 200))
    ImageDraw.Draw(picture).ellipse((20, 20, 44, 44), fill=(220, 30, 30))
    picture.save(tmp_path / "input.png")
    seen = drive("inpaint")
    assert "inpaint" in seen["details"]
    assert seen["colours"] > 1  # no picture hides the strokes
    assert not seen["mask"]
    before, after = (
        np.asarray(Image.open(tmp_path / name).convert("RGB"), int) for name in ("input.png", "output.png")
    )
    changed = np.abs(before - after).max(axis=2) > 0
    assert changed.any()
    for rows in (slice(0, 16), slice(-16, None)):  # the brush does not reach so far, and there every pixel is kept
        assert not changed[rows].any()


def test_margins_are_painted(drive: Callable[..., Any], tmp_path: Path) -> None:
    picture = Image.new("RGB", (64, 64), (30, 60, 200))
    ImageDraw.Draw(picture).ellipse((12, 12, 52, 52), fill=(220, 30, 30))
    picture.save(tmp_path / "input.png")
    seen = drive("outpaint")
    assert "Describe a picture" in seen["nothing"]
    assert "margin" not in seen["left"]
    assert "outpaint" in seen["details"]
    made = Image.open(tmp_path / "output.png").convert("RGB")
    assert made.size == (80, 72)
    assert len(made.crop((0, 0, 16, 72)).getcolors(10_000)) > 16  # not an edge drawn out, nor a plain colour


def test_wrong_values_are_refused_beside_their_fields(
    drive: Callable[..., Any], new_jobs: Callable[[], list[Job]]
) -> None:
    seen = drive("refuse")
    assert "Must be from 0 to 9223372036854775807, not -5" in seen["seed"]
    assert "Must have up to 10000 characters" in seen["prompt"]
    assert seen["status"] == "Not made: Prompt, Seed need another value"
    assert "9007199254740993" in seen["details"]
    assert len(new_jobs()) == 1


def test_two_windows_at_once(drive: Callable[..., Any]) -> None:
    seen = drive("windows")
    assert seen == {"together": [1, 1], "prompts": ["a red circle", "a green star"], "galleries": [1, 1]}


def test_a_picture_waits_in_the_queue(drive: Callable[..., Any], demo: RunningServer) -> None:
    seen = drive("queue")
    assert re.match(r"1 job ahead in the queue(, about |$)", seen["waiting"])
    assert seen["early"] == 0
    assert "a large yellow star" in seen["details"]
    settle(demo)


def test_a_reload_finds_the_running_job(drive: Callable[..., Any], new_jobs: Callable[[], list[Job]]) -> None:
    seen = drive("reload")
    assert seen.pop("before").startswith("a blue square the picture before")
    running = {"alt": "a red heart", "generate": False}
    assert seen == {"running": running, "random": True, "gallery": 1, "prompt": "a red heart"}
    assert [job.state for job in new_jobs()] == ["cancelled", "completed"]


def test_loras_and_a_controlnet(drive: Callable[..., Any], tmp_path: Path) -> None:
    picture = Image.new("RGB", (64, 64), "blue")
    ImageDraw.Draw(picture).ellipse((12, 12, 52, 52), fill="red")
    picture.save(tmp_path / "input.png")
    seen = drive("conditions")
    assert ["outline" in seen["sliders"][0], "stripes" in seen["sliders"][1]] == [True, True]
    assert "LoRAsoutline 0.7, stripes 0.25ControlNetscanny" in seen["details"]


def test_a_preset(drive: Callable[..., Any], tmp_path: Path) -> None:
    seen = drive("preset")
    assert seen["scheduler"].startswith("dpmpp-2m ·")
    assert seen["guidance"] == "2.5"
    assert "LoRAsstripes 0.5" in seen["details"]
    Image.open(tmp_path / "preset.png").load()


def test_schedulers_are_compared_and_a_recipe_used_again(drive: Callable[..., Any]) -> None:
    seen = drive("compare")
    names = [label.partition(" · ")[0] for label in seen["labels"]]
    assert "the newest picture; choose another below" in seen["newest"]
    assert "newest" not in seen["details"]
    assert names == ["ddim", "euler", "euler-ancestral", "heun", "dpmpp-2m", "dpmpp-2m-sde"]
    assert seen["used"]["scheduler"].partition(" · ")[0] in seen["details"]
    assert seen["used"]["seed"] in seen["details"]
    assert seen["mode"].strip() == "Inpaint"


def test_prompts_of_a_template(drive: Callable[..., Any], new_jobs: Callable[[], list[Job]]) -> None:
    seen = drive("templates")
    assert "'{circle|' in 'a {red|blue} {circle|' cannot be read" in seen["refused"]
    prompts = ["a red circle", "a red star", "a blue circle", "a blue star"]
    assert [label.partition(" · ")[0] for label in seen["combinations"]] == prompts
    samples = [label.partition(" · ")[0] for label in seen["samples"]]
    assert len(set(samples)) == 2
    assert all(re.fullmatch("a (red|blue) (circle|star|heart)", prompt) for prompt in samples)
    assert sorted(job.prompt for job in new_jobs()) == sorted([*prompts, *samples])


@pytest.mark.slow
def test_the_picture_in_the_readme(drive: Callable[..., Any], tmp_path: Path) -> None:
    assert drive("readme") == {"gallery": 6}
    picture = (tmp_path / "readme.png").read_bytes()
    assert len(picture) < 300_000
    if "DARKROOM_SCREENSHOT" in os.environ:
        (ROOT / os.environ["DARKROOM_SCREENSHOT"]).write_bytes(picture)
