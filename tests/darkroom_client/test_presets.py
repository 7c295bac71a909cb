"""Presets by the client and the command line, of the real server."""

import asyncio
import json

import pytest

from darkroom_client import AsyncClient, PresetNotFound
from tests.support import RunningServer

FAST = {"description": "Quick.", "scheduler": "euler", "num_inference_steps": 3, "guidance_scale": 0.0}


@pytest.fixture(scope="module")
def server(tiny_model):
    with RunningServer(models=[{"name": "tiny", "path": tiny_model, "presets": {"fast": FAST}}]) as running:
        yield running


@pytest.fixture
def address(server):
    return server.address


def accepted(stream):
    """What was accepted, once the job is done."""
    stream.image()
    return stream.accepted


def test_a_call_names_one(client):
    stream = client.generate("a red circle", preset="fast", guidance_scale=2.0)
    picture = stream.image()
    parameters = stream.accepted.parameters
    assert (parameters.num_inference_steps, parameters.guidance_scale) == (3, 2.0)
    assert (parameters.scheduler.name, parameters.preset) == ("euler", "")
    assert accepted(client.edit(picture, "a hat", preset="fast", strength=1.0)).step_count == 3
    with pytest.raises(PresetNotFound, match=r"there is no preset 'fats' \(did you mean 'fast'\?\)"):
        client.generate("a", preset="fats").image()


def test_the_list_of_models_has_them(address, client):
    async def listed():
        async with AsyncClient(address) as same:
            return await same.models()

    (model,) = client.models()
    assert asyncio.run(listed()) == [model]
    (preset,) = model.presets
    assert (preset.name, preset.description) == ("fast", "Quick.")
    values = {field.name for field, _ in preset.parameters.ListFields()}
    assert values == {"scheduler", "num_inference_steps", "guidance_scale"}
    assert accepted(client.generate("a", parameters=preset.parameters)).parameters.num_inference_steps == 3


def test_the_command_line(darkroom):
    darkroom("generate", "a red circle", "--preset", "fast", "--steps", 2, "--out", "a.png")
    (line,) = [line for line in darkroom("models").stdout.splitlines() if "tiny" in line]
    assert "│ fast " in line
    (model,) = json.loads(darkroom("models", "--json").stdout)
    assert model["presets"][0]["parameters"]["guidance_scale"] == 0.0
    failed = darkroom("generate", "a", "--preset", "fats", exit_code=1)
    assert "--preset: there is no preset 'fats'" in failed.stderr
