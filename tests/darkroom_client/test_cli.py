"""The command line against a scripted server."""

import json
from io import StringIO

import grpc
import PIL.Image
import PIL.PngImagePlugin
import pytest

from darkroom.v1.parameters_pb2 import HiresFix


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def red_pixels(path):
    with PIL.Image.open(path) as picture:
        colors = picture.getcolors(picture.width * picture.height)
    return next(count for count, color in colors if color == (255, 0, 0))


def test_generate_writes_the_picture_and_prints_its_path(darkroom, scripted, tmp_path):
    result = darkroom("generate", "A red circle!")
    assert result.stdout == "a-red-circle-7.png\n"
    with PIL.Image.open(tmp_path / "a-red-circle-7.png") as picture:
        assert picture.size == (64, 64)
    assert scripted.requests[0].preview.mode == 1  # off: nobody looks at them
    assert darkroom("generate", "A red circle!").stdout == "a-red-circle-7-2.png\n"


def test_options_reach_the_request(darkroom, scripted):
    words = (
        "--seed 0 --steps 30 --scheduler dpmpp-2m --sigma-schedule karras --timestep-spacing trailing "
        "--option solver_order=3 --option lower=true --guidance-scale 0 --width 64 --height 72 --num-images 2 "
        "--model shapes --guidance-rescale 0.5 --clip-skip 1 --eta 0.5 --extension vignette.strength=0.5 "
        "--extension vignette.name=round --deterministic --format webp --preview latent-rgb"
    )
    more = "--prompt-syntax weighted --prompt-2 b --negative-prompt-2 c --task remix --timeout 60 --preset fast"
    sizes = "--original-size 1024x768 --crop-offset 3,4 --target-size 64X72"
    darkroom("generate", "a", "--negative-prompt", "", *words.split(), *more.split(), *sizes.split())
    request = scripted.requests[0]
    parameters = request.parameters
    assert (parameters.seed, parameters.num_inference_steps, parameters.guidance_scale) == (0, 30, 0.0)
    assert parameters.HasField("negative_prompt")
    assert (parameters.width, parameters.height, parameters.num_images, parameters.model) == (64, 72, 2, "shapes")
    assert (parameters.prompt_syntax, parameters.prompt_2, parameters.negative_prompt_2) == (2, "b", "c")
    assert (parameters.task, parameters.preset) == ("remix", "fast")
    sizes = [value for _, value in parameters.size_conditioning.ListFields()]
    assert sizes == [1024, 768, 3, 4, 64, 72]
    assert (parameters.guidance_rescale, parameters.clip_skip, parameters.eta) == (0.5, 1, 0.5)
    spec = parameters.scheduler
    assert (spec.name, spec.sigma_schedule, spec.timestep_spacing) == ("dpmpp-2m", 2, 3)
    assert dict(spec.options) == {"solver_order": 3, "lower": True}
    assert dict(parameters.extensions["vignette"]) == {"strength": 0.5, "name": "round"}
    assert (request.deterministic, request.output.format, request.preview.mode) == (True, 3, 2)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--hires-fix 1.5", HiresFix(factor=1.5)),
        (
            "--hires-fix 96x128 --hires-upscaler latent_bicubic --hires-strength 0 --hires-steps 9",
            HiresFix(width=96, height=128, upscaler=3, strength=0.0, num_inference_steps=9),
        ),
        ("--from star.png", HiresFix(width=128, height=128, strength=0.5)),
        ("--from star.png --hires-strength 0.25", HiresFix(width=128, height=128, strength=0.25)),
        ("--from star.png --hires-fix 3", HiresFix(factor=3.0)),
        ("--from star.png --no-hires-fix", None),
    ],
)
def test_a_second_stage(darkroom, scripted, tmp_path, words, expected):
    recipe = {"parameters": {"prompt": "a", "hires_fix": {"width": 128, "height": 128, "strength": 0.5}}}
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text("darkroom", json.dumps(recipe))
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "star.png", pnginfo=text)
    darkroom("generate", *words.replace("star.png", str(tmp_path / "star.png")).split(), "a")
    parameters = scripted.requests[0].parameters
    assert (parameters.hires_fix if parameters.HasField("hires_fix") else None) == expected


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("--hires-steps 9", "--hires-fix: must be given, too"),
        ("--hires-fix big", "'big' is not FACTOR or WIDTHxHEIGHT in pixels"),
        ("--hires-fix 2 --no-hires-fix", "--no-hires-fix: cannot be combined"),
        ("--hires-fix 2 --hires-upscaler esrgan", "must be one of latent-nearest"),
    ],
)
def test_a_second_stage_that_makes_no_sense(darkroom, words, problem):
    assert problem in " ".join(darkroom("generate", "a", *words.split(), exit_code=2).stderr.replace("│", " ").split())


@pytest.fixture
def two_images(scripted, make_events):
    def script(request, context):
        events = make_events(request.request_id)
        yield events.accepted(2, (7, 8))
        for image in (1, 0):
            yield events.step(1, 2, image)
            yield events.preview(1, image)
            yield events.step(2, 2, image)
            yield events.preview(2, image)
            yield events.image(image=image, seed=7 + image)
        yield events.completed("the prompt was cut off")

    scripted.script = script


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        (None, ["1-a-7.png", "2-a-8.png", "3-b-7.png", "4-b-8.png"]),
        ("new/", ["new/1-a-7.png", "new/2-a-8.png", "new/3-b-7.png", "new/4-b-8.png"]),
        ("c.png", ["c-1.png", "c-2.png", "c-3.png", "c-4.png"]),
        ("x/{seed}_{prompt}.png", ["x/7_a.png", "x/8_a.png", "x/7_b.png", "x/8_b.png"]),
    ],
)
def test_several_pictures_get_their_own_names_in_order(darkroom, two_images, out, expected):
    where = [] if out is None else ["--out", out]
    result = darkroom("generate", "a", "b", "--num-images", 2, *where)
    assert result.stdout.splitlines() == expected
    assert "warning: the prompt was cut off" in result.stderr


def test_no_result_of_a_run_overwrites_another(darkroom, two_images, tmp_path):
    result = darkroom("generate", "a", "A!", "--num-images", 2, "--out", "{prompt}.png")
    assert len(set(result.stdout.splitlines())) == 4
    assert files(tmp_path) == ["a-2.png", "a-3.png", "a-4.png", "a.png"]
    darkroom("generate", "a", "--out", "a.png")
    assert len(files(tmp_path)) == 4  # a file that is named is written again


def test_out_chooses_the_format(darkroom, scripted):
    darkroom("generate", "a", "--out", "a.jpg")
    assert scripted.requests[0].output.format == 2
    result = darkroom("generate", "a", "--out", "a.jpg", "--format", "png", exit_code=2)
    assert "--out ends in .jpg" in result.stderr
    assert "a pattern may hold" in darkroom("generate", "a", "--out", "{what}.png", exit_code=2).stderr


def test_previews_are_kept_with_a_contact_sheet(darkroom, scripted, tmp_path):
    result = darkroom("generate", "a", "--previews", "p", "--out", "a.png")
    assert result.stdout.splitlines() == ["a.png", "p/contact-sheet.png"]
    assert files(tmp_path / "p") == ["contact-sheet.png", "step-001.png", "step-002.png", "step-003.png"]
    assert scripted.requests[0].preview.mode == 0
    assert red_pixels(tmp_path / "p/contact-sheet.png") == 4 * 128 * 128


def test_previews_of_several_jobs_and_images(darkroom, two_images, tmp_path):
    darkroom("generate", "a", "b", "--num-images", 2, "--previews", "p")
    names = [f"job-{j:02}-image-{i:02}-{end}" for j in (1, 2) for i in (1, 2) for end in ("contact-sheet", "step-001")]
    assert set(files(tmp_path / "p")) >= {f"{name}.png" for name in names}


def test_json(darkroom, tmp_path):
    result = darkroom("generate", "a", "--json", "--previews", "p", "--out", "a.png")
    assert result.stderr == ""
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["event"] for line in lines] == ["accepted", *["step", "preview"] * 3, "image", "completed"]
    assert {line["job"] for line in lines} == {0}
    preview, image = lines[2], lines[-2]
    assert (preview["path"], preview["bytes"]) == ("p/step-001.png", (tmp_path / "p/step-001.png").stat().st_size)
    assert (image["path"], image["bytes"]) == ("a.png", (tmp_path / "a.png").stat().st_size)
    assert (image["seed"], image["safety"]) == (7, "passed")
    assert lines[0]["parameters"]["num_inference_steps"] == 3
    assert lines[-1]["timings"]["denoise_seconds"] == 1.5


def test_errors_are_clean_and_whole(darkroom, scripted, abort_call):
    scripted.script = lambda request, context: abort_call(
        context,
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        "the request is not valid",
        [("parameters.width", "must be a multiple of [8]"), ("parameters.seed", "must be 0 or more")],
    )
    result = darkroom("generate", "a", exit_code=1)
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "error: the request is not valid",
        "  --width: must be a multiple of [8]",
        "  --seed: must be 0 or more",
    ]
    result = darkroom("generate", "a", "--json", exit_code=1)
    line = json.loads(result.stdout)
    assert (line["event"], line["reason"]) == ("error", "INVALID_REQUEST")
    assert line["violations"][0] == {"field": "parameters.width", "description": "must be a multiple of [8]"}


def test_one_failing_job_leaves_the_others(darkroom, scripted, abort_call, make_events):
    def script(request, context):
        if request.parameters.prompt == "bad":
            abort_call(context, grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "no such model")
        yield from make_events(request.request_id).whole_job()

    scripted.script = script
    result = darkroom("generate", "a", "bad", "c", exit_code=1)
    assert result.stdout.splitlines() == ["1-a-7.png", "3-c-7.png"]
    assert result.stderr == "error: bad: no such model\n"


def test_no_server(darkroom):
    result = darkroom("models", "--address", "127.0.0.1:1", exit_code=1)
    assert "no Darkroom server answers at 127.0.0.1:1" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate"],
        ["generate", "a", "--extension", "vignette=1"],
        ["generate", "a", "--option", "x"],
        ["generate", "a", "--steps", "many"],
        ["generate", "a", "--num-images", "0"],
        ["generate", "a", "--original-size", "1024"],
        ["generate", "a", "--crop-offset", "1,-2"],
        ["generate", "a", "--no-controls"],
        ["unknown"],
    ],
)
def test_wrong_usage(darkroom, arguments):
    assert darkroom(*arguments, exit_code=2).stderr.startswith("error: ")


def test_values_that_fit_no_request(darkroom):
    assert "  --seed: " in darkroom("generate", "a", "--seed", str(2**63), exit_code=1).stderr


@pytest.fixture
def picture(tmp_path):
    """A PNG with a recipe."""
    parameters = {
        "prompt": "an old prompt",
        "seed": "5",
        "num_inference_steps": 9,
        "scheduler": {"name": "dpmpp-2m", "sigma_schedule": "SIGMA_SCHEDULE_KARRAS", "options": {"a": 1, "b": 2}},
        "extensions": {"vignette": {"strength": 0.5}},
    }
    info = PIL.PngImagePlugin.PngInfo()
    info.add_itxt("darkroom", json.dumps({"darkroom": "0.1.0", "parameters": parameters, "deterministic": True}))
    path = tmp_path / "old.png"
    PIL.Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def test_from_a_picture(darkroom, scripted, picture):
    result = darkroom("generate", "--from", picture)
    assert result.stdout == "an-old-prompt-7.png\n"
    request = scripted.requests[0]
    assert (request.parameters.prompt, request.parameters.seed, request.deterministic) == ("an old prompt", 5, True)
    assert request.parameters.scheduler.sigma_schedule == 2
    assert request.parameters.extensions["vignette"]["strength"] == 0.5


def test_from_a_picture_with_changes(darkroom, scripted, picture):
    darkroom("generate", "a new one", "--from", picture, "--seed", 6, "--scheduler", "ddim", "--no-deterministic")
    request = scripted.requests[0]
    assert (request.parameters.prompt, request.parameters.seed, request.deterministic) == ("a new one", 6, False)
    assert request.parameters.scheduler.name == "ddim"
    assert not request.parameters.scheduler.HasField("options")
    darkroom("generate", "--from", picture, "--option", "b=3", "--timestep-spacing", "leading")
    spec = scripted.requests[1].parameters.scheduler
    assert (spec.name, spec.sigma_schedule, spec.timestep_spacing) == ("dpmpp-2m", 2, 2)
    assert dict(spec.options) == {"a": 1, "b": 3}


def test_from_a_picture_without_recipe(darkroom, tmp_path):
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    assert "carries no recipe" in darkroom("generate", "--from", "plain.png", exit_code=1).stderr
    stderr = darkroom("generate", "--from", "missing.png", exit_code=1).stderr
    assert stderr == "error: there is no file missing.png\n"


def test_lists(darkroom):
    assert "shapes (default)" in darkroom("models").stdout
    assert json.loads(darkroom("models", "--json").stdout)[0]["default_num_inference_steps"] == 25
    result = darkroom("loras")
    assert (result.stdout, result.stderr) == ("", "The server offers no LoRAs.\n")
    assert darkroom("loras", "--json").stdout == "[]\n"
    table = darkroom("schedulers").stdout
    assert "lcm-alias" in table
    assert "1-20" in table
    assert [entry["name"] for entry in json.loads(darkroom("schedulers", "--json").stdout)] == ["ddim", "euler", "lcm"]


def test_compare_schedulers(darkroom, scripted, tmp_path):
    result = darkroom("compare-schedulers", "a red circle", "--out", "sheets/all.png")
    assert result.stdout == "sheets/all.png\n"
    assert result.stderr.splitlines() == [
        "ddim: 25 steps, 1.50 s",
        "euler: 25 steps, 1.50 s",
        "lcm: 20 steps (not 25), 1.50 s",
    ]
    assert len({request.parameters.seed for request in scripted.requests}) == 1
    assert [request.parameters.num_inference_steps for request in scripted.requests] == [25, 25, 20]
    assert red_pixels(tmp_path / "sheets/all.png") >= 3 * 128 * 128


def test_compare_some_schedulers(darkroom, scripted):
    darkroom("compare-schedulers", "a", "--scheduler", "euler-alias", "--scheduler", "ddim", "--steps", 3, "--seed", 0)
    assert [request.parameters.scheduler.name for request in scripted.requests] == ["euler", "ddim"]
    assert {request.parameters.seed for request in scripted.requests} == {0}
    stderr = darkroom("compare-schedulers", "a", "--scheduler", "eulr", exit_code=1).stderr
    assert stderr == "error: the server has no scheduler 'eulr' (did you mean 'euler'?); it has ddim, euler, lcm\n"


def test_compare_goes_on_after_a_failure(darkroom, scripted, abort_call, make_events):
    def script(request, context):
        if request.parameters.scheduler.name == "euler":
            abort_call(context, grpc.StatusCode.FAILED_PRECONDITION, "UNSUPPORTED_COMBINATION", "cannot")
        yield from make_events(request.request_id).whole_job()

    scripted.script = script
    result = darkroom("compare-schedulers", "a", exit_code=1)
    assert "error: euler: cannot" in result.stderr
    assert result.stdout == "schedulers.png\n"


def test_pictures_in_half_blocks():
    from rich.console import Console

    from darkroom_client.cli._halfblocks import HalfBlocks

    picture = PIL.Image.new("RGB", (4, 4), (1, 2, 3))
    picture.paste((9, 8, 7), (0, 0, 4, 2))
    output = StringIO()
    console = Console(file=output, force_terminal=True, color_system="truecolor", width=80, height=20)
    console.print(HalfBlocks(picture, 4, 2))
    shown = output.getvalue()
    assert shown.count("▀") == 8
    assert "38;2;9;8;7" in shown
    assert "38;2;1;2;3" in shown
