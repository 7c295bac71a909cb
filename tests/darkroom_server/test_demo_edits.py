"""The demo model with its ControlNet and LoRAs, over the wire: what a user sees is what was asked for."""

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from darkroom.v1 import catalog_service_pb2 as catalog_pb
from darkroom.v1.edits_pb2 import ImageToImage, Inpaint, Outpaint
from darkroom.v1.parameters_pb2 import ControlSpec, HiresFix, LoraSpec
from darkroom_demo.edges import canny, edge_f1
from darkroom_demo.measure import measure, style_strength
from tests.support import RunningServer, png

PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module")
def demo() -> Iterator[RunningServer]:
    with RunningServer() as running:
        yield running


@pytest.fixture(scope="module")
def circle(demo: RunningServer) -> Image.Image:
    return demo.generate(prompt=PROMPT, seed=7).pictures()[0].convert("RGB")


def test_the_adapters_are_offered(demo: RunningServer) -> None:
    loras = demo.catalog.ListLoras(catalog_pb.ListLorasRequest()).loras
    nets = demo.catalog.ListControlNets(catalog_pb.ListControlNetsRequest()).control_nets
    assert [(each.name, list(each.models)) for each in loras] == [("outline", ["shapes"]), ("stripes", ["shapes"])]
    assert [(each.name, list(each.models), each.preprocessor) for each in nets] == [("canny", ["shapes"], "canny")]


def test_inpainting_a_corner_changes_only_it(demo: RunningServer, circle: Image.Image) -> None:
    hole = Image.new("L", (64, 64))
    hole.paste(255, (0, 0, 20, 20))
    edit = Inpaint(mask=png(hole), keep_unmasked=True, mask_blur=1)
    prompt = "a small yellow star at the left on a green background"
    (result,) = demo.edit(prompt=prompt, seed=1, image=png(circle), inpaint=edit).pixels
    before = np.asarray(circle, int)
    assert np.array_equal(result[24:], before[24:])
    assert np.array_equal(result[:, 24:], before[:, 24:])
    assert np.abs(result[:18, :18] - before[:18, :18]).mean() > 20


@pytest.mark.parametrize("left", [32, 33])
def test_a_line_thinner_than_a_latent_is_repainted(demo: RunningServer, circle: Image.Image, left: int) -> None:
    """A latent of this model is as large as 4 pixels. diffusers takes the first of them."""
    line = Image.new("L", (64, 64))
    line.paste(255, (left, 0, left + 2, 64))
    edit = Inpaint(mask=png(line), keep_unmasked=True, mask_blur=0)
    prompt = "a large yellow square on a green background"
    (result,) = demo.edit(prompt=prompt, seed=1, image=png(circle), inpaint=edit).pixels
    changed = np.abs(result - np.asarray(circle, int)).max(axis=2)
    assert changed[:, left : left + 2].mean() > 20
    assert np.delete(changed, [left, left + 1], axis=1).max() == 0


def test_strength_goes_from_the_picture_to_the_prompt(demo: RunningServer, circle: Image.Image) -> None:
    def edited(strength: float) -> Image.Image:
        edit = ImageToImage(strength=strength)
        return demo.edit(
            prompt="a green square on a blue background", seed=3, image=png(circle), image_to_image=edit
        ).pictures()[0]

    low, high = measure(edited(0.05)), measure(edited(0.9))
    assert [(blob.colour, blob.shape) for blob in low.blobs] == [("red", "circle")]
    assert [(blob.colour, blob.shape) for blob in high.blobs] == [("green", "square")]


def test_outpainting_goes_on_with_the_picture(demo: RunningServer, circle: Image.Image) -> None:
    (result,) = demo.edit(prompt=PROMPT, seed=5, image=png(circle), outpaint=Outpaint(left=8, top=8)).pixels
    assert result.shape == (72, 72, 3)
    seen = measure(Image.fromarray(result.astype(np.uint8)).resize((64, 64)))
    assert seen.background == "blue"
    assert [(blob.colour, blob.shape) for blob in seen.blobs] == [("red", "circle")]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_picture_follows_its_edges(demo: RunningServer, seed: int) -> None:
    model = Image.new("RGB", (64, 64), "white")
    model.paste("black", ((3, 3, 30, 30), (30, 34, 58, 61), (4, 32, 32, 60))[seed - 1])
    control = ControlSpec(model="canny", image=png(model), preprocessor="canny")
    request = {"prompt": "a green square on a yellow background", "seed": seed}
    controlled, free = (demo.generate(**request, controls=controls).pictures()[0] for controls in ([control], []))
    assert edge_f1(canny(controlled), canny(model)) >= 0.7
    assert edge_f1(canny(free), canny(model)) <= 0.4
    assert [blob.colour for blob in measure(controlled).blobs] == ["green"]


@pytest.mark.parametrize("style", ["outline", "stripes"])
def test_a_style_is_turned_up(demo: RunningServer, style: str) -> None:
    request = {"prompt": "a large green heart on a white background", "seed": 3}
    none, half, full = (
        demo.generate(**request, loras=[LoraSpec(name=style, weight=weight)]).pictures()[0] for weight in (0, 0.5, 1)
    )
    plain = demo.generate(**request).pictures()[0]
    assert np.array_equal(np.asarray(none), np.asarray(plain))
    strengths = [style_strength(style, plain, picture) for picture in (none, half, full)]
    assert strengths == sorted(strengths)
    assert strengths[0] < 0.1
    assert strengths[2] > 0.6


def edge_width(picture: Image.Image) -> float:
    """Of the edges, in pixels: how far they reach for their steepness."""
    pixels = np.asarray(picture.convert("RGB"), float)
    down, across = (np.abs(np.diff(pixels, axis=axis)).max(axis=2) / 255 for axis in (0, 1))
    steepness = np.hypot(down[:, :-1], across[:-1])
    return float(steepness.sum() / (steepness**2).sum())


def test_a_second_stage_is_the_first_with_sharper_edges(demo: RunningServer, circle: Image.Image) -> None:
    second = HiresFix(width=96, height=96, strength=0.2)
    (made,) = demo.generate(prompt=PROMPT, seed=7, hires_fix=second).pictures()
    assert edge_width(made) < 0.8 * edge_width(circle.resize((96, 96), Image.Resampling.LANCZOS))
    ((before,), (after,)) = (measure(each).blobs for each in (circle, made))
    assert (before.colour, before.shape, before.position) == (after.colour, after.shape, after.position)


def test_all_of_it_in_one_request(demo: RunningServer, circle: Image.Image) -> None:
    model = Image.new("RGB", (64, 64), "white")
    model.paste("black", (36, 36, 60, 60))
    hole = Image.new("L", (64, 64))
    hole.paste(255, (32, 32, 64, 64))
    stream = demo.edit(
        prompt="a yellow square on a blue background",
        seed=2,
        scheduler="euler-ancestral",
        image=png(circle),
        inpaint=Inpaint(mask=png(hole), keep_unmasked=True, mask_blur=0),
        controls=[ControlSpec(model="canny", image=png(model), preprocessor="canny", echo_map=True)],
        loras=[LoraSpec(name="outline", weight=0.5), LoraSpec(name="stripes", weight=0.2)],
    )
    assert stream.kinds[:2] == ["accepted", "control_image"]
    (result,) = stream.pixels
    assert np.array_equal(result[:32], np.asarray(circle, int)[:32])
    assert np.abs(result[38:58, 38:58] - np.asarray(circle, int)[38:58, 38:58]).mean() > 20
