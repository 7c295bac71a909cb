"""The client and the command line against the real server."""

import asyncio
import json
from io import BytesIO

import PIL.Image
import pytest

from darkroom_client import (
    Accepted,
    AsyncClient,
    Cancelled,
    Completed,
    DeadlineExceeded,
    InvalidRequest,
    LoraNotFound,
    ModelNotFound,
    OutputOptions,
    Preview,
    PreviewOptions,
    RequestIdInUse,
    RequestNotFound,
    SchedulerNotFound,
    SchedulerSpec,
    Step,
    read_recipe,
)


@pytest.fixture
def address(server):
    return server.address


def pixels(data):
    return PIL.Image.open(BytesIO(data)).convert("RGB").tobytes()


def test_a_picture_develops(client):
    stream = client.generate("a red circle", num_inference_steps=4, seed=3, preview=PreviewOptions(format="png"))
    events = list(stream)
    assert isinstance(events[0], Accepted)
    assert isinstance(events[-1], Completed)
    assert [event.step for event in events if isinstance(event, Step)] == [1, 2, 3, 4]
    assert [event.sequence for event in events] == sorted(event.sequence for event in events)
    previews = [event for event in events if isinstance(event, Preview)]
    assert previews
    assert max(previews[0].pil.size) >= 64
    image = stream.image()
    assert (image.seed, image.pil.size) == (3, (image.width, image.height))
    assert stream.accepted.seeds == (3,)
    assert stream.accepted.parameters.num_inference_steps == 4


def test_the_recipe_makes_the_same_picture_again(client, tmp_path):
    first = client.generate(
        "a “red” circle ☂",
        negative_prompt="",
        num_inference_steps=5,
        num_images=2,
        guidance_scale=3.5,
        scheduler=SchedulerSpec("dpmpp-2m", sigma_schedule="karras"),
        deterministic=True,
    ).images()[1]
    recipe = read_recipe(first.save(tmp_path / "a.png"))
    assert (recipe.parameters.prompt, recipe.parameters.seed) == ("a “red” circle ☂", first.seed)
    assert recipe.deterministic
    for base in (recipe, first.metadata):
        again = client.generate(parameters=base).image()
        assert again.image_bytes == first.image_bytes
    other = client.generate(parameters=recipe, seed=first.seed + 1).image()
    assert pixels(other.image_bytes) != pixels(first.image_bytes)


def test_output_formats(client):
    image = client.generate("a", num_inference_steps=1, output=OutputOptions("jpeg", quality=50)).image()
    assert (image.media_type, image.suffix, image.pil.format) == ("image/jpeg", ".jpg", "JPEG")
    assert image.metadata["parameters"]["prompt"] == "a"


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_every_format_carries_its_recipe(client, tmp_path, kind):
    first = client.generate("a “red” circle ☂", num_inference_steps=2, seed=2**62, output=kind).image()
    recipe = read_recipe(first.save(tmp_path / "a"))
    assert (recipe.parameters.prompt, recipe.parameters.seed) == ("a “red” circle ☂", 2**62)
    again = client.generate(parameters=recipe, output=kind).image()
    assert pixels(again.image_bytes) == pixels(first.image_bytes)


def test_a_recipe_that_does_not_fit_is_said(client, tmp_path):
    text = "\U0001f534" * 10_000
    stream = client.generate(text, negative_prompt=text, num_inference_steps=1, num_images=2, output="jpeg")
    stream.images()
    warnings = [text for text in stream.completed.warnings if "JPEG" in text]
    assert len(warnings) == 2
    assert "bytes of recipe" in warnings[0]
    assert "EXIF comment" in warnings[1]


@pytest.mark.parametrize(("seed", "written"), [(7, 7), (2**53, 2**53), (2**53 + 1, "9007199254740993")])
def test_seeds_are_numbers_as_far_as_doubles_go(client, seed, written):
    image = client.generate("a", num_inference_steps=1, seed=seed).image()
    assert image.metadata["parameters"]["seed"] == written
    assert ("note" in image.metadata) == isinstance(written, str)
    assert isinstance(image.metadata["parameters"]["num_inference_steps"], int)


def test_many_jobs_of_both_clients_at_once(server, client):
    async def main():
        async with AsyncClient(server.address) as other:
            streams = [other.generate("a", seed=seed, num_inference_steps=3) for seed in range(4)]
            blocking = asyncio.to_thread(lambda: client.generate("a", seed=9, num_inference_steps=3).image())
            images = await asyncio.gather(*(stream.image() for stream in streams), blocking)
            return [image.seed for image in images]

    assert asyncio.run(main()) == [0, 1, 2, 3, 9]


def test_errors_are_typed(client):
    with pytest.raises(InvalidRequest) as caught:
        client.generate("a", num_inference_steps=0, width=33, guidance_scale=float("nan")).image()
    fields = {violation.field for violation in caught.value.violations}
    assert fields >= {"parameters.num_inference_steps", "parameters.width", "parameters.guidance_scale"}
    with pytest.raises(ModelNotFound):
        client.generate("a", model="missing").image()
    with pytest.raises(SchedulerNotFound):
        client.generate("a", scheduler="missing").image()
    with pytest.raises(RequestNotFound):
        client.cancel("missing")
    with pytest.raises(InvalidRequest, match="nobody"):
        client.generate("a", extensions={"nobody": {}}).image()
    with pytest.raises(LoraNotFound):
        client.generate("a", loras={"x": 1.0}).image()


def test_models_are_loaded_and_unloaded(client):
    name = client.models()[0].name
    assert client.unload_model(name) > 0
    assert client.unload_model(name) == 0
    progress = []
    loaded = client.load_model(name, progress.append)
    assert loaded.weight_bytes == progress[-1].bytes_total == progress[-1].bytes_done
    with pytest.raises(ModelNotFound):
        client.load_model("missing")


def test_cancelling(client):
    with client.generate("a", num_inference_steps=500, request_id="long") as stream:
        for event in stream:
            if isinstance(event, Step):
                break
    stream = client.generate("a", num_inference_steps=500)
    events = iter(stream)
    while not isinstance(next(events), Step):
        pass
    with pytest.raises(RequestIdInUse):
        client.generate("a", request_id=stream.request_id).image()
    assert client.cancel(stream.request_id) is True
    with pytest.raises(Cancelled):
        list(events)


def test_the_timeout(client):
    with pytest.raises(DeadlineExceeded):
        client.generate("a", num_inference_steps=500, timeout=0.2).image()


def test_the_catalog(client):
    info = client.server_info()
    assert info.api_version == "darkroom.v1"
    models = {model.name: model for model in client.models()}
    assert models[info.default_model].is_default
    names = {scheduler.name for scheduler in client.schedulers()}
    assert {"ddim", "euler", "lcm", "dpmpp-2m", "unipc"} <= names


def test_command_generate(darkroom, tmp_path):
    result = darkroom("generate", "a circle", "--steps", 3, "--seed", 4, "--out", "a.png", "--previews", "p")
    assert result.stdout.splitlines() == ["a.png", "p/contact-sheet.png"]
    again = darkroom("generate", "--from", "a.png", "--out", "b.png")
    assert again.stdout == "b.png\n"
    assert pixels((tmp_path / "a.png").read_bytes()) == pixels((tmp_path / "b.png").read_bytes())
    assert list((tmp_path / "p").glob("step-*"))


def test_command_generate_as_json(darkroom):
    lines = [json.loads(line) for line in darkroom("generate", "a", "b", "--steps", 2, "--json").stdout.splitlines()]
    assert {line["job"] for line in lines} == {0, 1}
    assert [line["step"] for line in lines if line["event"] == "step" and line["job"] == 1] == [1, 2]
    assert sum(line["event"] == "completed" for line in lines) == 2


def test_command_errors(darkroom):
    result = darkroom("generate", "a", "--steps", 0, "--width", 33, exit_code=1)
    assert "  --steps: must be from 1 to " in result.stderr
    assert "  --width: " in result.stderr
    stderr = darkroom("generate", "a", "--scheduler", "eulr", exit_code=1).stderr
    assert stderr.startswith(
        "error: --scheduler: there is no scheduler 'eulr' (did you mean 'euler'?); there are: ddim,"
    )


def test_command_info(darkroom):
    shown = darkroom("info").stdout
    assert "API darkroom.v1" in shown
    assert "max prompt characters" in shown
    info = json.loads(darkroom("info", "--json").stdout)
    assert info["limits"]["max_request_bytes"] == 32 * 1024 * 1024
    assert info["limits"]["job_retention_seconds"] == 3600.0
    assert {"name", "version", "hooks", "extensions_schema", "builtin"} == info["plugins"][0].keys()


def test_command_compare_schedulers(darkroom, client):
    result = darkroom("compare-schedulers", "a circle", "--steps", 51, "--scheduler", "lcm", "--scheduler", "euler_a")
    assert result.stdout == "schedulers.png\n"
    assert result.stderr.startswith("lcm: 50 steps (not 51), ")
    assert "euler-ancestral: 51 steps, " in result.stderr


def test_command_lists(darkroom, server):
    assert "tiny (default)" in darkroom("models").stdout
    assert "DPMSolverMultistepScheduler" in darkroom("schedulers").stdout
