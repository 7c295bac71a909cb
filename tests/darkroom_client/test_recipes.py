"""Recipes out of pictures."""

import json

import PIL.Image
import PIL.PngImagePlugin
import pytest

from darkroom_client import InvalidRequest, Recipe, read_recipe


def write(path, **texts):
    info = PIL.PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_itxt(key, text)
    PIL.Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def test_reads_the_recipe(tmp_path):
    parameters = {
        "prompt": "a “red” circle ☂",
        "seed": str(2**63 - 1),
        "scheduler": {"name": "euler", "sigma_schedule": "SIGMA_SCHEDULE_KARRAS", "options": {"x": 1}},
        "a_field_of_the_future": {"y": 2},
    }
    recipe = {"darkroom": "0.1.0", "parameters": parameters, "deterministic": True}
    found = read_recipe(write(tmp_path / "a.png", darkroom=json.dumps(recipe), parameters="a red circle\nSteps: 3"))
    assert (found.version, found.deterministic) == ("0.1.0", True)
    assert (found.parameters.prompt, found.parameters.seed) == ("a “red” circle ☂", 2**63 - 1)
    assert found.parameters.scheduler.sigma_schedule == 2


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({}, "carries no recipe"),
        ({"parameters": "a red circle"}, "carries no recipe"),
        ({"darkroom": "{"}, "not valid JSON"),
        ({"darkroom": "[]"}, "not a JSON object"),
        ({"darkroom": '{"parameters": {"width": "wide"}}'}, "not a recipe of Darkroom"),
        ({"darkroom": '{"parameters": 3}'}, "not a recipe of Darkroom"),
    ],
)
def test_says_what_is_wrong(tmp_path, texts, message):
    with pytest.raises(InvalidRequest, match=message):
        read_recipe(write(tmp_path / "a.png", **texts))


def test_other_files(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(InvalidRequest, match="is not a picture"):
        read_recipe(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError):
        read_recipe(tmp_path / "b.png")


def test_parameters_alone():
    assert Recipe.from_dict({"prompt": "a"}).parameters.prompt == "a"
