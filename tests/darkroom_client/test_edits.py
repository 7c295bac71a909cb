"""Edits, ControlNets, LoRAs and control maps, by the client and the command line, against the real server."""

import json

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

from darkroom_client import (
    ControlImage,
    ControlNetNotFound,
    ControlSpec,
    InvalidRequest,
    PreprocessorNotFound,
    Step,
    UnsupportedCombination,
    read_recipe,
)
from tests.support import RunningServer, alike
from tests.tiny import save_controlnet, save_lora

SIZE = 32


@pytest.fixture(scope="module")
def equipped(tiny_model, tmp_path_factory):
    """A server with a model, two ControlNets, of which one has its preprocessor, and a LoRA."""
    folder = tmp_path_factory.mktemp("assets")
    nets = [
        {"name": "edges", "path": save_controlnet(folder / "edges", tiny_model, 1), "preprocessor": "canny"},
        {"name": "depth", "path": save_controlnet(folder / "depth", tiny_model, 2)},
    ]
    loras = [{"name": "ink", "path": save_lora(folder / "ink.safetensors", tiny_model, 3), "description": "Black."}]
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], controlnets=nets, loras=loras) as running:
        yield running


@pytest.fixture
def address(equipped):
    return equipped.address


@pytest.fixture
def photo():
    picture = PIL.Image.new("RGB", (SIZE, SIZE), "navy")
    PIL.ImageDraw.Draw(picture).ellipse((8, 8, 24, 24), fill="red")
    return picture


@pytest.fixture
def mask():
    picture = PIL.Image.new("L", (SIZE, SIZE))
    picture.paste(255, (SIZE // 2, 0, SIZE, SIZE))
    return picture


@pytest.fixture
def files(photo, mask, tmp_path):
    """photo.png and mask.png in the folder where the commands run."""
    photo.save(tmp_path / "photo.png")
    mask.save(tmp_path / "mask.png")


def levels(picture):
    return np.asarray(picture.convert("RGB"), dtype=int)


def pixels(path):
    with PIL.Image.open(path) as picture:
        return levels(picture)


def test_strength_is_how_much_of_the_steps_run(client, photo):
    stream = client.edit(photo, "a", strength=0.5, num_inference_steps=6, seed=1)
    steps = [event for event in stream if isinstance(event, Step)]
    assert len(steps) == stream.accepted.step_count == 3
    assert stream.image().pil.size == (SIZE, SIZE)


def test_a_picture_may_be_bytes_a_path_or_a_pil_image(client, photo, mask, tmp_path):
    photo.save(tmp_path / "photo.png")
    forms = [photo, tmp_path / "photo.png", str(tmp_path / "photo.png"), (tmp_path / "photo.png").read_bytes()]
    edits = [client.edit(each, "a", mask=mask, num_inference_steps=2, seed=1, deterministic=True) for each in forms]
    assert len({edit.image().image_bytes for edit in edits}) == 1


def test_inpaint_keeps_what_is_black(client, photo, mask):
    made = client.edit(
        photo, "a", mask=mask, mask_blur=0, keep_unmasked=True, num_inference_steps=2, seed=1, padding_crop=4
    ).image()
    before, after = levels(photo), levels(made.pil)
    assert np.array_equal(before[:, : SIZE // 2], after[:, : SIZE // 2])
    assert not np.array_equal(before[:, SIZE // 2 :], after[:, SIZE // 2 :])


def test_outpaint_and_other_sizes(client, photo):
    assert client.edit(photo, "a", margins=(8, 0, 16, 4), num_inference_steps=2).image().pil.size == (56, 36)
    wide = client.edit(photo, "a", width=64, height=32, resize_mode="pad", num_inference_steps=2).image()
    assert wide.pil.size == (64, 32)


def test_a_control_with_its_preprocessor(client, photo):
    control = ControlSpec("edges", photo, "canny", {"low_threshold": 50}, scale=0.5, echo_map=True)
    with_it = client.generate("a", controls=[control], num_inference_steps=2, seed=1)
    kinds = [type(event) for event in with_it]
    assert kinds.count(ControlImage) == 1
    (used,) = with_it.control_images()
    (asked,) = client.preprocess(photo, "canny", options={"low_threshold": 50}).control_images()
    assert (used.preprocessor, asked.preprocessor, asked.width) == ("canny", "canny", SIZE)
    assert alike(levels(used.pil), levels(asked.pil))
    without = client.generate("a", num_inference_steps=2, seed=1).image()
    assert not np.array_equal(levels(with_it.image().pil), levels(without.pil))


def test_loras_by_text(client):
    def picture(*loras):
        return client.generate("a", loras=loras, num_inference_steps=2, seed=1, deterministic=True).image()

    assert picture("ink").image_bytes == picture("ink:1").image_bytes
    assert levels(picture("ink:-0.5").pil).tolist() != levels(picture("ink:0.5").pil).tolist()
    assert levels(picture("ink:0").pil).tolist() == levels(picture().pil).tolist()


def test_errors_are_typed(client, photo):
    with pytest.raises(ControlNetNotFound):
        client.generate("a", controls=[ControlSpec("none", photo)]).image()
    with pytest.raises(PreprocessorNotFound):
        client.preprocess(photo, "none").control_images()
    with pytest.raises(InvalidRequest, match=r"inpaint\.mask: must be 32 x 32"):
        client.edit(photo, "a", mask=PIL.Image.new("L", (8, 8), 255)).image()
    with pytest.raises(InvalidRequest, match=r"controls\[0\]\.end"):
        client.generate("a", controls=[ControlSpec("edges", photo, end=2.0)]).image()
    with pytest.raises(UnsupportedCombination, match="one text encoder"):
        client.generate("a", prompt_2="b").image()


def test_the_catalog(client):
    assert {task.name for task in client.tasks()} >= {"txt2img", "img2img", "inpaint", "outpaint"}
    assert [(net.name, net.preprocessor) for net in client.control_nets()] == [("depth", ""), ("edges", "canny")]
    assert [lora.name for lora in client.loras()] == ["ink"]
    canny = next(each for each in client.preprocessors() if each.name == "canny")
    assert canny.parameters_schema["properties"]["low_threshold"]["default"] == 100


@pytest.mark.usefixtures("files")
def test_command_edit(darkroom, tmp_path):
    common = ("photo.png", "a", "--steps", 4, "--seed", 1)
    result = darkroom("edit", *common, "--strength", 0.5, "--out", "a.png", "--previews", "p")
    assert result.stdout.splitlines() == ["a.png", "p/contact-sheet.png"]
    assert len(list((tmp_path / "p").glob("step-*"))) == 2
    darkroom("edit", *common, "--mask", "mask.png", "--keep-unmasked", "--mask-blur", 0, "--out", "b.png")
    half = SIZE // 2
    assert np.array_equal(pixels(tmp_path / "b.png")[:, :half], pixels(tmp_path / "photo.png")[:, :half])
    darkroom("edit", *common, "--outpaint", "0,0,8,0", "--out", "c.png")
    assert pixels(tmp_path / "c.png").shape == (SIZE, SIZE + 8, 3)


@pytest.mark.usefixtures("files")
def test_command_edit_with_everything(darkroom, tmp_path):
    words = "--control edges=photo.png:0.5 --control-map depth=mask.png --lora ink:0.5 --prompt-syntax weighted"
    result = darkroom(
        "edit", "photo.png", "(a:1.2)", "--steps", 2, "--out", "a.png", "--echo-maps", "m", *words.split()
    )
    assert result.stdout.splitlines() == ["a.png", "m/control-1-edges.png", "m/control-2-depth.png"]
    darkroom("preprocess", "canny", "photo.png", "--out", "edges.png")
    assert np.array_equal(pixels(tmp_path / "edges.png"), pixels(tmp_path / "m/control-1-edges.png"))


@pytest.mark.usefixtures("files")
def test_an_edit_again_by_its_recipe(darkroom, tmp_path):
    change = ("--mask", "mask.png", "--strength", 0.5)
    darkroom("edit", "photo.png", "a", "--steps", 4, "--seed", 5, "--scheduler", "euler", *change, "--out", "a.png")
    assert "darkroom edit IMAGE --mask MASK" in darkroom("generate", "--from", "a.png", exit_code=2).stderr
    darkroom("edit", "photo.png", "--from", "a.png", *change, "--out", "b.png")
    assert alike(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))


def test_command_generate_with_a_lora_and_again(darkroom, tmp_path):
    darkroom("generate", "a", "--lora", "ink:0.5", "--steps", 2, "--seed", 1, "--out", "a.png")
    assert read_recipe(tmp_path / "a.png").parameters.loras[0].weight == 0.5
    darkroom("generate", "--from", "a.png", "--out", "b.png")
    assert alike(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))


@pytest.mark.usefixtures("files")
def test_controls_again_by_their_recipe(darkroom, tmp_path):
    options = (
        "--control-option edges.end=0.5 --preprocess-option edges.low_threshold=50 --control-option depth.start=0.25"
    )
    first = f"--control edges=photo.png:0.5 --control-map depth=mask.png {options} --steps 4 --seed 1"
    darkroom("generate", "a", *first.split(), "--out", "a.png")
    stderr = darkroom("generate", "--from", "a.png", exit_code=2).stderr
    assert "add --control edges=PHOTO --control-map depth=MAP, or --no-controls" in stderr
    again = "--control edges=photo.png --control-map depth=mask.png"
    darkroom("generate", "--from", "a.png", *again.split(), "--out", "b.png")
    assert alike(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))
    darkroom("generate", "--from", "a.png", "--no-controls", "--out", "c.png")
    assert not np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "c.png"))


@pytest.mark.usefixtures("files")
def test_command_errors(darkroom):
    assert "there is no lora 'none'" in darkroom("generate", "a", "--lora", "none", exit_code=1).stderr
    assert "from -10 to 10" in darkroom("generate", "a", "--lora", "ink:11", exit_code=1).stderr
    assert "there is no preprocessor" in darkroom("preprocess", "none", "photo.png", exit_code=1).stderr
    stderr = darkroom("preprocess", "canny", "photo.png", "--option", "low=1", exit_code=1).stderr
    assert "--option low: " in stderr
    assert "it has depth, edges" in darkroom("generate", "a", "--control", "x=photo.png", exit_code=1).stderr
    assert "--strength: must be from 0 to 1" in darkroom("edit", "photo.png", "", "--strength", 2, exit_code=1).stderr


@pytest.mark.usefixtures("files")
def test_command_compare_schedulers(darkroom):
    words = "--scheduler ddim --scheduler euler --steps 2 --lora ink --control edges=photo.png"
    assert darkroom("compare-schedulers", "a", *words.split()).stdout == "schedulers.png\n"


def test_command_lists(darkroom):
    assert "Black." in darkroom("loras").stdout
    nets = {each["name"]: each for each in json.loads(darkroom("controlnets", "--json").stdout)}
    assert nets["edges"]["preprocessor"] == "canny"
    assert "canny" in darkroom("controlnets").stdout
    assert "inpaint" in darkroom("tasks").stdout
    table = darkroom("preprocessors").stdout
    assert "low_threshold=100 (0 to 2040): " in table
    assert "level (0 to 255): " in table
    assert "measure=luma (luma | lightness | value): " in table
    assert "invert=false (boolean): " in table
