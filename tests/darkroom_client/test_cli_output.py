"""What the command line says and where it writes: help, lists, errors in its own words, JSON, stdout, files kept."""

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from io import BytesIO, StringIO

import grpc
import PIL.Image
import pytest
from rich.console import Console

import darkroom_client
from darkroom.v1 import catalog_service_pb2, parameters_pb2
from darkroom_client.cli._json import to_json
from darkroom_client.cli._words import option_of
from tests.darkroom_client.scripted import png

COMMANDS = ("generate", "edit", "compare-schedulers", "preprocess", "info", "health", "load", "unload")
LISTS = ("models", "tasks", "schedulers", "loras", "controlnets", "preprocessors")


def test_the_version(darkroom):
    version = metadata.version("darkroom-diffusion")
    assert darkroom("--version").stdout == f"darkroom {version}\n"
    assert darkroom_client.__version__ == version


def test_the_version_loads_no_command():
    code = """if True:
        import sys
        from darkroom_client.cli import app
        try: app(["--version"])
        except SystemExit: pass
        heavy = ("grpc", "asyncio", "rich.console", "darkroom_client.cli._options")
        print([name for name in heavy if name in sys.modules])
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", [(), *((name,) for name in (*COMMANDS, *LISTS))])
def test_help_has_a_short_flag(darkroom, command):
    assert darkroom(*command, "-h").stdout == darkroom(*command, "--help").stdout


@pytest.mark.parametrize("command", [*COMMANDS, *LISTS])
def test_help_has_examples(darkroom, command):
    shown = darkroom(command, "-h").stdout
    assert "Examples:" not in shown
    assert f"darkroom {command}" in shown.partition("Examples")[2]


def completions(*words):
    """What bash completes after these words."""
    environment = {**os.environ, "_DARKROOM_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words)}
    environment["COMP_CWORD"] = str(len(words) - 1)
    code = "from darkroom_client.cli import app; app(prog_name='darkroom')"
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return result.stdout.split()


def test_the_shell_completes():
    assert completions("darkroom", "gen") == ["generate"]
    assert "--steps" in completions("darkroom", "generate", "--st")
    assert completions("darkroom", "generate", "--preview", "la") == ["latent-rgb"]


def test_completion_can_be_installed(darkroom):
    assert "--install-completion" in darkroom("--help").stdout


def test_unknown_commands_and_options_are_answered_with_the_nearest(darkroom):
    stderr = " ".join(darkroom("generat", "a", exit_code=2).stderr.replace("│", " ").split())
    assert "There is no command 'generat' (did you mean 'generate'?). There are: generate, edit," in stderr
    assert "--steps" in darkroom("generate", "a", "--step", "3", exit_code=2).stderr


def test_an_unknown_name_is_answered_with_the_nearest(darkroom):
    stderr = darkroom("generate", "a", "--preview", "latent-rbg", exit_code=2).stderr
    assert "not 'latent-rbg' (did you mean 'latent-rgb'?)" in " ".join(stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("field", "option"),
    [
        ("parameters.num_inference_steps", "--steps"),
        ("parameters.prompt", "PROMPT"),
        ("parameters.prompt_2", "--prompt-2"),
        ("parameters.scheduler.name", "--scheduler"),
        ("parameters.scheduler.sigma_schedule", "--sigma-schedule"),
        ("parameters.scheduler.options.order", "--option order"),
        ("parameters.scheduler.options", "--option"),
        ("parameters.loras[1].weight", "--lora"),
        ("parameters.controls[0].model", "--control"),
        ("parameters.controls[0].preprocessor_options.low", "--preprocess-option low"),
        ("parameters.controls[0].start", "--control-option start"),
        ("parameters.size_conditioning.crop_left", "--crop-offset"),
        ("parameters.hires_fix.factor", "--hires-fix"),
        ("parameters.hires_fix", "--hires-fix"),
        ("parameters.hires_fix.num_inference_steps", "--hires-steps"),
        ("parameters.hires_fix.upscaler", "--hires-upscaler"),
        ("parameters.extensions[vignette].strength", "--extension vignette.strength"),
        ("parameters.extensions['vignette']", "--extension vignette"),
        ("inpaint.mask", "--mask"),
        ("image_to_image.strength", "--strength"),
        ("outpaint.left", "--outpaint"),
        ("resize_mode", "--resize-mode"),
        ("image", "IMAGE"),
        ("preview.mode", "--preview"),
        ("output.format", "--format"),
        ("preprocessor", "NAME"),
        ("preprocessor_options.low", "--option low"),
        ("request_id", "ID"),
        ("model", "MODEL"),
        ("preview.max_edge", "preview.max_edge"),
    ],
)
def test_fields_have_the_names_of_options(field, option):
    assert option_of(field) == option


def test_every_parameter_has_an_option(darkroom):
    shown = darkroom("edit", "-h").stdout + darkroom("generate", "-h").stdout
    for field in parameters_pb2.Parameters.DESCRIPTOR.fields:
        option = option_of(f"parameters.{field.name}")
        if field.name not in ("prompt", "size_conditioning"):
            assert option in shown, field.name


def test_an_error_of_one_field_is_one_line(darkroom, scripted, abort_call):
    scripted.script = lambda request, context: abort_call(
        context,
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        "parameters.num_inference_steps: must be from 1 to 500",
        [("parameters.num_inference_steps", "must be from 1 to 500")],
    )
    assert darkroom("generate", "a", exit_code=1).stderr == "error: --steps: must be from 1 to 500\n"


@pytest.mark.parametrize(
    ("options", "problem", "exit_code"),
    [
        ("--timeout -1", "--timeout: must be a number of seconds above 0", 1),
        ("--address host:99999", "--address 'host:99999' has no such port", 2),
        ("--root-certificate none.pem", "--root-certificate: none.pem cannot be read", 2),
        ("--client-key none.pem", "--client-key: none.pem cannot be read", 2),
        ("--out .venv", ".venv is no folder", 1),
    ],
)
def test_keywords_have_the_names_of_options(darkroom, scripted, tmp_path, options, problem, exit_code):
    (tmp_path / ".venv").touch()
    result = darkroom("generate", "a", *options.split(), exit_code=exit_code)
    assert result.stderr.startswith(f"error: {problem}")


def test_an_option_of_several_fields_is_told_once(darkroom, scripted, abort_call, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    sides = [(f"outpaint.{side}", "must be from 0 to 64") for side in ("left", "top")]
    size = ("outpaint", "makes too large a picture; set parameters.width and parameters.height")
    scripted.script = lambda request, context: abort_call(
        context, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "no", [*sides, size]
    )
    result = darkroom("edit", "a.png", "a", "--outpaint", "99", exit_code=1)
    assert result.stderr.splitlines()[1:] == [
        "  --outpaint: must be from 0 to 64",
        "  --outpaint: makes too large a picture; set --width and --height",
    ]


@pytest.mark.parametrize("command", ["generate", "edit"])
def test_a_prompt_is_asked_for(darkroom, scripted, tmp_path, command):
    (tmp_path / "a.png").write_bytes(png())
    image = ["a.png"] if command == "edit" else []
    assert "say what the picture shows" in darkroom(command, *image, exit_code=2).stderr
    assert scripted.requests == []


class TestOut:
    def test_stdout(self, darkroom, scripted):
        result = darkroom("generate", "a", "--out", "-")
        assert result.stdout_bytes == png()
        assert result.stderr == ""
        darkroom("generate", "a", "--out", "-", "--format", "webp")
        assert scripted.requests[-1].output.format == 3

    def test_stdout_in_a_pipe(self, scripted, tmp_path):
        code = "from darkroom_client.cli import main; main()"
        environment = {**os.environ, "DARKROOM_ADDRESS": scripted.address}
        command = [sys.executable, "-c", code, "generate", "a", "--out", "-", "--previews", "p"]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True)
        assert result.stdout == png()
        assert result.stderr.decode() == "p/contact-sheet.png\n"

    def test_control_maps_and_sheets_go_there_too(self, darkroom, scripted, make_events, tmp_path):
        sheet = darkroom("compare-schedulers", "a", "--scheduler", "ddim", "--out", "-").stdout_bytes
        assert PIL.Image.open(BytesIO(sheet)).format == "PNG"
        (tmp_path / "a.png").write_bytes(png())

        def script(request, context):
            events = make_events(request.request_id)
            yield from (events.accepted(), events.control_image(), events.completed())

        scripted.script = script
        assert darkroom("preprocess", "canny", "a.png", "--out", "-").stdout_bytes == png(color="white")

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            (["generate", "a", "b", "--out", "-"], "takes one picture, and this makes 2"),
            (["generate", "a", "--num-images", "2", "--out", "-"], "takes one picture, and this makes 2"),
            (["generate", "a", "--json", "--out", "-"], "cannot be combined with --out -"),
            (["generate", "a", "--out", "a.gif"], "a.gif ends in .gif; pictures end in .png, .jpg, .jpeg, .webp"),
            (["compare-schedulers", "a", "--out", "a.gif"], "a.gif ends in .gif"),
            (["preprocess", "canny", "a.png", "--out", "a.tiff"], "a.tiff ends in .tiff"),
        ],
    )
    def test_what_is_refused_before_the_call(self, darkroom, scripted, tmp_path, arguments, problem):
        (tmp_path / "a.png").write_bytes(png())
        stderr = darkroom(*arguments, exit_code=2).stderr
        assert problem in " ".join(stderr.replace("│", " ").split())
        assert scripted.requests == []

    def test_the_suffix_is_the_format(self, darkroom, tmp_path):
        darkroom("compare-schedulers", "a", "--scheduler", "ddim", "--out", "sheet.webp")
        with PIL.Image.open(tmp_path / "sheet.webp") as sheet:
            assert sheet.format == "WEBP"

    def test_no_clobber(self, darkroom, scripted, make_events, tmp_path):
        for name in ("a.png", "schedulers.png"):
            (tmp_path / name).write_bytes(b"kept")
        assert darkroom("generate", "a", "--out", "a.png", "--no-clobber").stdout == "a-2.png\n"
        assert darkroom("generate", "a", "--out", "{prompt}{suffix}", "--no-clobber").stdout == "a-3.png\n"
        sheet = darkroom("compare-schedulers", "a", "--scheduler", "ddim", "--no-clobber")
        assert sheet.stdout == "schedulers-2.png\n"
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "schedulers.png").read_bytes() == b"kept"
        darkroom("generate", "a", "--out", "a.png")
        assert (tmp_path / "a.png").read_bytes() == png()

    def test_no_clobber_of_previews_and_control_maps(self, darkroom, scripted, make_events, tmp_path):
        def script(request, context):
            events = make_events(request.request_id)
            yield from (
                events.accepted(),
                events.control_image(),
                events.preview(1),
                events.image(),
                events.completed(),
            )

        scripted.script = script
        (tmp_path / "a.png").write_bytes(png())
        names = ("control-1-depth", "step-001", "contact-sheet")
        for name in names:
            (tmp_path / f"{name}.png").write_bytes(b"kept")
        run = ("generate", "a", "--control-map", "depth=a.png", "--previews", ".", "--echo-maps", ".", "--no-clobber")
        lines = map(json.loads, darkroom(*run, "--json").stdout.splitlines())
        paths = [line["path"] for line in lines if "path" in line]
        assert paths == ["control-1-depth-2.png", "step-001-2.png", "a-7.png"]
        assert darkroom(*run).stdout.splitlines() == ["a-7-2.png", "contact-sheet-3.png", "control-1-depth-3.png"]
        assert {(tmp_path / f"{name}.png").read_bytes() for name in names} == {b"kept"}
        assert all((tmp_path / f"{name}-{number}.png").exists() for name in names for number in (2, 3))

    def test_a_folder_that_cannot_be_written(self, darkroom, tmp_path):
        (tmp_path / "file").write_text("")
        stderr = darkroom("generate", "a", "--out", "file/a.png", exit_code=1).stderr
        assert stderr.startswith("error: file")
        assert "[Errno" not in stderr


def test_a_picture_from_stdin(scripted, tmp_path):
    code = "from darkroom_client.cli import main; main()"
    environment = {**os.environ, "DARKROOM_ADDRESS": scripted.address}
    command = [sys.executable, "-c", code, "edit", "-", "a hat", "--out", "a.png"]
    subprocess.run(command, cwd=tmp_path, env=environment, input=b"picture", capture_output=True, check=True)
    assert scripted.requests[0].image == b"picture"


@pytest.mark.parametrize("option", [("--mask", "-"), ("--control-map", "depth=-:0.5")])
def test_stdin_is_one_picture(scripted, tmp_path, option):
    code = "from darkroom_client.cli import main; main()"
    environment = {**os.environ, "DARKROOM_ADDRESS": scripted.address, "COLUMNS": "200"}
    command = [sys.executable, "-c", code, "edit", "-", "a hat", *option]
    result = subprocess.run(command, cwd=tmp_path, env=environment, input=b"picture", capture_output=True, check=False)
    assert (result.returncode, scripted.requests) == (2, [])
    assert "stdin is empty or read already: only one picture may be -" in result.stderr.decode()


class TestJson:
    def test_numbers_are_numbers_and_zeros_are_there(self, darkroom, scripted, make_events):
        def script(request, context):
            events = make_events(request.request_id)
            accepted = events.accepted(seeds=(2**53, 2**53 + 1))
            accepted.accepted.preview.mode = 2
            accepted.accepted.parameters.scheduler.sigma_schedule = 2
            return [accepted, events.image(), events.completed()]

        scripted.script = script
        line = json.loads(darkroom("generate", "a", "--num-images", 2, "--json").stdout.splitlines()[0])
        parameters = line["parameters"]
        assert (parameters["seed"], line["seeds"]) == (2**53, [2**53, "9007199254740993"])
        assert (parameters["guidance_rescale"], parameters["clip_skip"], parameters["loras"]) == (0.0, 0, [])
        assert (parameters["guidance_scale"], parameters["size_conditioning"]) == (None, None)  # unset
        assert (line["preview"]["mode"], parameters["scheduler"]["sigma_schedule"]) == ("latent-rgb", "karras")

    def test_lists(self, darkroom):
        (model,) = json.loads(darkroom("models", "--json").stdout)
        assert (model["preview_modes"], model["default_preview_mode"]) == (["off", "latent-rgb", "full-vae"], None)
        assert (model["weight_bytes"], model["max_size"], model["residency"]) == (0, 0, None)
        assert model.keys() == {field.name for field in catalog_service_pb2.Model.DESCRIPTOR.fields}

    def test_whole_numbers_of_schemas_stay_whole(self):
        plugin = catalog_service_pb2.Plugin(name="vignette")
        plugin.extensions_schema.update({"maximum": 1, "default": 0.5, "enum": [1, 2.5]})
        schema = to_json(plugin)["extensions_schema"]
        assert {name: json.dumps(value) for name, value in schema.items()} == {
            "maximum": "1",
            "default": "0.5",
            "enum": "[1, 2.5]",
        }


class TestLists:
    @pytest.fixture
    def narrow(self, darkroom, monkeypatch):
        """Runs a command in a terminal of 80 columns."""
        output = StringIO()
        monkeypatch.setattr("rich.console.Console", lambda: Console(file=output, force_terminal=True, width=80))

        def run(*arguments):
            darkroom(*arguments)
            return re.sub(r"\x1b\[[0-9;]*m", "", output.getvalue())

        return run

    @pytest.mark.parametrize("command", ["models", "schedulers", "controlnets"])
    def test_they_can_be_read_at_80_columns(self, narrow, command):
        shown = narrow(command)
        assert "…" not in shown
        assert max(map(len, shown.splitlines())) <= 80

    def test_what_does_not_fit_is_a_block(self, narrow):
        shown = narrow("models")
        assert "┃" not in shown
        assert "family sd; size 64x64; steps 25;" in shown
        assert "previews off," in shown

    def test_what_fits_is_a_table(self, narrow):
        shown = narrow("controlnets")
        assert "┃" in shown
        assert "v1.1/canny" in shown


def test_info(darkroom, scripted):
    shown = darkroom("info").stdout
    assert shown.startswith(f"Darkroom 0.1.0 at {scripted.address}, API darkroom.v1\n")
    assert "vignette.strength=0.5 (0 to 1): How dark." in shown
    info = json.loads(darkroom("info", "--json").stdout)
    assert info["plugins"][0]["extensions_schema"]["properties"]["strength"]["maximum"] == 1
    assert info["limits"]["max_images"] == 0
