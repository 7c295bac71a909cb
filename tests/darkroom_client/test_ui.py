"""The page's translations: fields to requests, recipes to fields, errors to fields, runs to HTML."""

import base64
import socket
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from darkroom.v1 import parameters_pb2
from darkroom_client import events
from darkroom_client.cli import app
from darkroom_client.errors import Cancelled, DarkroomError, InvalidRequest, QueueFull, Violation
from darkroom_client.options import ControlSpec, LoraSpec, SchedulerSpec
from darkroom_client.ui import view
from darkroom_client.ui.history import Made, Window
from darkroom_client.ui.problems import problems
from darkroom_client.ui.recipes import fields_of, preset_fields, recipe_of
from darkroom_client.ui.runs import Job, Run
from darkroom_client.ui.settings import FIELDS, mask, prompts, request
from tests.darkroom_client.browsing import free_port

BLANK = dict.fromkeys(FIELDS) | {
    "mode": "txt2img",
    "prompt": "a red circle",
    "num_inference_steps": 20.0,
    "guidance_scale": 3.5,
    "width": 64,
    "height": 96,
    "num_images": 1,
    "random_seed": True,
    "mask_blur": 4,
    "padding_crop": 32,
    "strength": 0.8,
}


PICTURE = Image.new("RGB", (32, 16), "blue")


def brushed(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (32, 16)) -> str:
    """What the page's brush sends."""
    layer, file = Image.new("RGBA", size), BytesIO()
    for box in boxes:
        ImageDraw.Draw(layer).rectangle(box, fill=(255, 92, 56, 255))
    layer.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


# ----------------------------------------------------------------------------------------------------------- requests


def test_what_is_left_empty_is_left_to_the_server() -> None:
    asked = request(BLANK)
    given = {name: value for name, value in asked.keywords.items() if value is not None}
    assert given == {
        "scheduler": SchedulerSpec(),
        "num_inference_steps": 20,
        "guidance_scale": 3.5,
        "width": 64,
        "height": 96,
        "num_images": 1,
    }
    assert asked.image is None


def test_all_parameters() -> None:
    asked = request(
        BLANK
        | {"negative_prompt": "blue", "weighted": True, "model": "sd", "scheduler": "euler", "sigma_schedule": "karras"}
        | {"preset": "fast"}
        | {
            "seed": " 9007199254740993 ",
            "random_seed": False,
            "loras": ["ink", "wax"],
            "weight_0": 0.5,
            "weight_1": 1.0,
        }
    )
    assert asked.keywords["negative_prompt"] == "blue"
    assert (asked.keywords["prompt_syntax"], asked.keywords["preset"]) == ("weighted", "fast")
    assert asked.keywords["scheduler"] == SchedulerSpec("euler", sigma_schedule="karras")
    assert asked.keywords["seed"] == 9007199254740993
    assert asked.keywords["loras"] == [LoraSpec("ink", 0.5), LoraSpec("wax", 1.0)]


@pytest.mark.parametrize(
    ("mode", "factor", "asked"), [("txt2img", 1.5, 1.5), ("txt2img", 1, None), ("img2img", 2, None)]
)
def test_hires_fix_is_for_pictures_from_text(mode: str, factor: float, asked: float | None) -> None:
    assert request(BLANK | {"mode": mode, "hires_fix": factor, "picture": PICTURE}).keywords["hires_fix"] == asked


def test_prompts_of_a_template(tmp_path: Path) -> None:
    (tmp_path / "colour.txt").write_text("red\nblue\n")
    all_of = {"template": "combinations", "prompt": "a {red|blue} star"}
    assert prompts(all_of, 0, None) == ["a red star", "a blue star"]
    some = {"template": "samples", "samples": 3.0, "prompt": "a __colour__ {star|heart|square}"}
    assert len(set(prompts(some, 5, tmp_path))) == 3
    assert prompts(some, 5, tmp_path) == prompts(some, 5, tmp_path)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{a", "cannot be read"),
        ("{1|2|3|4|5}" * 2, "has more than 24 combinations"),
        ("a __size__ star", "no wildcard 'size'"),
        ("a __../colour__ star", "no wildcard '../colour'"),
    ],
)
def test_what_is_no_template(template: str, problem: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "colour.txt").write_text("red\n")
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(InvalidRequest) as caught:
        prompts({"template": "combinations", "prompt": template}, 0, folder)
    (violation,) = caught.value.violations
    assert violation.field == "parameters.prompt"
    assert problem in violation.description
    assert str(tmp_path) not in violation.description, "visitors see where the folder lies"
    assert capfd.readouterr().err == ""


def test_a_seed_that_is_not_kept_is_not_sent() -> None:
    assert request(BLANK | {"seed": "7"}).keywords["seed"] is None


def test_controls_keep_their_slots() -> None:
    picture = Image.new("RGB", (8, 8))
    control = {"model": "canny", "image": picture, "preprocessor": "", "scale": 0.5, "start": 0.0, "end": 0.8}
    asked = request(BLANK | {f"control_{name}_1": value for name, value in control.items()})
    assert asked.keywords["controls"] == [ControlSpec("canny", picture, None, scale=0.5, start=0.0, end=0.8)]
    assert asked.slots == [1]


def test_edits() -> None:
    remade = request(BLANK | {"mode": "img2img", "picture": PICTURE})
    assert remade.keywords["strength"] == 0.8
    assert "width" not in remade.keywords
    inpainted = request(BLANK | {"mode": "inpaint", "picture": PICTURE, "mask": brushed((4, 4, 7, 7)), "closely": True})
    assert inpainted.keywords["padding_crop"] == 32
    assert inpainted.keywords["mask"].getbbox() == (4, 4, 8, 8)
    outpainted = request(BLANK | {"mode": "outpaint", "picture": PICTURE, "left": 8.0, "right": 16})
    assert outpainted.keywords["margins"] == (8, 0, 16, 0)
    assert outpainted.image is not None


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"mode": "img2img"}, "image"),
        ({"mode": "inpaint", "picture": PICTURE}, "inpaint.mask"),
        ({"control_model_0": "canny"}, "parameters.controls[0].image"),
        ({"seed": "seven", "random_seed": False}, "parameters.seed"),
    ],
)
def test_what_is_missing(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        request(BLANK | fields)
    assert [violation.field for violation in caught.value.violations] == [path]


def test_a_mask_is_white_where_the_brush_was() -> None:
    found = mask(brushed((0, 0, 23, 11), size=(64, 32)), (32, 16))
    assert found.size == (32, 16)
    assert found.getbbox() in {(0, 0, 12, 6), (0, 0, 13, 7)}
    assert set(found.tobytes()) == {0, 255}
    assert mask("", (32, 16)).getbbox() is None


# ------------------------------------------------------------------------------------------------------------ problems


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("parameters.num_inference_steps", "num_inference_steps"),
        ("parameters.scheduler.name", "scheduler"),
        ("parameters.scheduler.sigma_schedule", "sigma_schedule"),
        ("parameters.loras[1].weight", "weight_1"),
        ("parameters.loras[0].name", "loras"),
        ("parameters.controls[0].image", "control_image_1"),
        ("parameters.controls[0].preprocessor_options.blur", "control_model_1"),
        ("image", "picture"),
        ("inpaint.mask", "picture"),
        ("inpaint.mask_blur", "mask_blur"),
        ("image_to_image.strength", "strength"),
        ("outpaint", "left"),
        ("outpaint.top", "top"),
        ("parameters.extensions['x']", ""),
    ],
)
def test_problems_stand_beside_their_fields(path: str, field: str) -> None:
    error = InvalidRequest("no", violations=[Violation(path, "is wrong")])
    (found, text), *others = problems(error, [1]).items()
    assert not others
    assert found == field
    assert text.lower() == ("is wrong" if field else f"{path}: is wrong")


def test_a_problem_of_no_field() -> None:
    assert problems(QueueFull("the queue is full")) == {"": "The queue is full"}


# ------------------------------------------------------------------------------------------------------------- recipes


def test_a_recipe_fills_the_fields() -> None:
    recipe = {
        "parameters": {
            "task": "inpaint",
            "prompt": "a star",
            "model": "shapes",
            "scheduler": {"name": "euler", "sigma_schedule": "SIGMA_SCHEDULE_KARRAS"},
            "seed": "9007199254740993",
            "num_inference_steps": 8,
            "guidance_scale": 3,
            "loras": [{"name": "outline", "weight": 0.5}],
            "controls": [{"model": "canny", "preprocessor": "canny", "scale": 0.7}],
        },
        "edit": {"inpaint": {"strength": 0.9, "mask_blur": 2, "keep_unmasked": True}},
    }
    fields = fields_of(recipe)
    assert set(fields) <= set(FIELDS)
    wanted = {"mode": "inpaint", "prompt": "a star", "scheduler": "euler", "sigma_schedule": "karras", "strength": 0.9}
    wanted |= {"seed": "9007199254740993", "random_seed": False, "loras": ["outline"], "weight_0": 0.5}
    wanted |= {
        "template": "",
        "control_model_0": "canny",
        "control_scale_0": 0.7,
        "control_model_1": None,
        "closely": False,
    }
    assert {name: fields[name] for name in wanted} == wanted


def test_a_preset_fills_the_fields_that_the_page_has() -> None:
    spec = parameters_pb2.SchedulerSpec(name="euler", sigma_schedule="SIGMA_SCHEDULE_KARRAS")
    given = parameters_pb2.Parameters(num_inference_steps=4, guidance_scale=0.0, clip_skip=1, scheduler=spec)
    wanted = {"num_inference_steps": 4, "guidance_scale": 0.0, "scheduler": "euler", "sigma_schedule": "karras"}
    assert preset_fields(given) == wanted


def test_a_recipe_has_the_factor_of_its_second_stage() -> None:
    parameters = {"width": 64, "height": 64, "hires_fix": {"width": 96, "height": 96}}
    assert fields_of({"parameters": parameters})["hires_fix"] == 1.5
    assert fields_of({"parameters": {}})["hires_fix"] == 1


def test_a_picture_tells_from_which_size_it_was_made() -> None:
    parameters: dict[str, Any] = {"width": 64, "height": 96, "prompt": "a"}
    made = Made("a.png", "a", 1, 128, 192, {"parameters": parameters})
    assert "64" not in view.details(made)
    parameters["hires_fix"] = {"width": 128, "height": 192}
    assert "<dt>Hires fix</dt><dd>from 64 × 96</dd>" in view.details(made)  # noqa: RUF001


def test_a_job_that_was_accepted_has_a_recipe() -> None:
    parameters = parameters_pb2.Parameters(prompt="a star", num_inference_steps=8, task="txt2img")
    fields = fields_of(recipe_of(accepted(parameters, 5)))
    assert (fields["prompt"], fields["num_inference_steps"], fields["seed"]) == ("a star", 8, "5")


# ---------------------------------------------------------------------------------------------------------------- view


def accepted(parameters: parameters_pb2.Parameters, *seeds: int) -> events.Accepted:
    return events.Accepted(
        "job", 1, parameters, seeds, 10, parameters_pb2.PreviewOptions(), parameters_pb2.OutputOptions()
    )


def running(*seen: events.Event, label: str = "") -> Run:
    job = Job("job", label)
    for event in (accepted(parameters_pb2.Parameters(prompt='<b>"x"</b>'), 5), *seen):
        job.take(event)
    return Run([job])


def step(number: int, eta: float | None = None, image: int = 0) -> events.Step:
    return events.Step("job", 2, image, number, 10, 500.0, None, 1.0, eta, 2)


def test_what_a_run_is_at() -> None:
    assert view.describe(Run([Job("job")])) == "Asking the server"
    assert view.describe(running()) == "Waiting for its turn"
    assert view.describe(running(events.Queued("job", 2, 1, 12.4))) == "1 job ahead in the queue, about 12 s"
    assert view.describe(running(events.Queued("job", 2, 3, None))) == "3 jobs ahead in the queue"
    assert view.describe(running(events.Queued("job", 2, 0, 80.0))) == "Next in the queue, about 1 min 20 s"
    loading = events.Loading("job", 2, "sd15", "unet", None, 40, 100)
    assert view.describe(running(loading)) == "Loading sd15, 40% (unet)"
    assert view.describe(running(loading, step(3, 70))) == "Step 3 of 10, about 1 min 10 s left"


def test_how_a_run_ended() -> None:
    stopped = running(step(4))
    stopped.jobs[0].error = Cancelled("cancelled")
    assert view.describe(stopped) == "Stopped after step 4 of 10"
    failed = running()
    failed.jobs[0].error = DarkroomError("out of luck")
    assert view.describe(failed) == "out of luck"
    timings = events.Timings(0, 0, 0, 1, 0, 2.34)
    done = running(step(10), events.Completed("job", 9, timings, ("the prompt was truncated",), ()))
    assert view.describe(done) == "Done in 2.3 s. the prompt was truncated"
    assert "width:100.0%" in view.status(done)


def test_pictures_are_escaped() -> None:
    preview = events.Preview("job", 3, b"jpeg", "image/jpeg", 64, 64, 0, 2, "full-vae")
    drawn = view.of_run(running(step(2), preview, label="<euler>"), {})
    assert 'src="data:image/jpeg;base64,anBlZw=="' in drawn
    assert 'alt="&lt;b&gt;&quot;x&quot;&lt;/b&gt;"' in drawn
    assert "&lt;euler&gt; · 2/10" in drawn


def test_pictures_are_kept_once_and_forgotten(tmp_path: Any) -> None:
    image = events.Image("job", 4, b"png", "image/png", 64, 32, 0, 5, None, {"parameters": {"prompt": "a star"}})
    window, run = Window(), running(step(10), image)
    window.begin(run)
    assert window.keep(tmp_path, run)
    assert not window.keep(tmp_path, run)
    (made,) = window.made
    assert (made.seed, made.prompt, made.caption) == (5, "a star", "5")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"png"]
    assert f'src="{made.url}" data-kind="picture"' in view.of_run(run, window.paths)
    assert Run.from_json(window.runs[-1]).jobs[0].request_id == "job"
    window.forget()
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------------- command


def test_the_command_wants_an_address_to_listen_on() -> None:
    result = CliRunner().invoke(app, ["ui", "--listen", "7860"])
    assert result.exit_code == 2
    assert "has no port" in result.output


def test_the_command_says_where_it_cannot_listen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        result = CliRunner().invoke(app, ["ui", "--listen", listen])
    assert result.exit_code == 1
    assert result.output == f"error: cannot listen on {listen}: Address already in use\n"


@pytest.mark.parametrize(("listen", "warned"), [("0.0.0.0", True), ("127.0.0.1", False), ("localhost", False)])
def test_the_command_warns_of_visitors(monkeypatch: pytest.MonkeyPatch, listen: str, warned: bool) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = CliRunner().invoke(app, ["ui", "--listen", f"{listen}:{free_port()}"])
    assert ("whoever can open" in result.output) == warned
    monkeypatch.setenv("DARKROOM_UI_LOGIN", "me:secret")
    assert "whoever can open" not in CliRunner().invoke(app, ["ui", "--listen", f"{listen}:{free_port()}"]).output


def test_the_command_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = CliRunner().invoke(app, ["ui", "--listen", f"127.0.0.1:{free_port()}"])
    assert result.exit_code == 1
    assert "needs the extra `ui`" in result.output
    assert "pip install 'darkroom-diffusion[ui]'" in result.output
