"""Edits, LoRAs and ControlNets on the command line, against a scripted server: what reaches it, and what is refused."""

import json

import PIL.Image
import PIL.PngImagePlugin
import pytest

from darkroom_client.cli._values import parse_scaled_path


@pytest.fixture(autouse=True)
def pictures(tmp_path):
    """photo.png and mask.png in the folder where the commands run."""
    for name in ("photo", "mask"):
        PIL.Image.new("RGB", (8, 8), "white").save(tmp_path / f"{name}.png")


@pytest.fixture
def sent(darkroom, scripted):
    """The request that a command sends."""

    def run(*arguments):
        darkroom(*arguments)
        return scripted.requests[-1]

    return run


def recipe(path, whole=None, **parameters):
    """A PNG with a recipe, and what else `whole` has beside its parameters."""
    info = PIL.PngImagePlugin.PngInfo()
    info.add_itxt("darkroom", json.dumps({"darkroom": "0.1.0", "parameters": parameters, **(whole or {})}))
    PIL.Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def test_image_to_image(sent, tmp_path):
    request = sent("edit", "photo.png", "a watercolour", "--strength", 0, "--seed", 3, "--width", 64)
    assert request.image == (tmp_path / "photo.png").read_bytes()
    assert request.WhichOneof("edit") == "image_to_image"
    assert request.image_to_image.HasField("strength")
    assert (request.parameters.prompt, request.parameters.seed, request.parameters.width) == ("a watercolour", 3, 64)
    assert sent("edit", "photo.png", "a").WhichOneof("edit") is None


def test_inpaint(sent, tmp_path):
    words = "--mask mask.png --mask-blur 0 --padding-crop 0 --keep-unmasked --strength 0.5"
    request = sent("edit", "photo.png", "a hat", *words.split())
    inpaint = request.inpaint
    assert inpaint.mask == (tmp_path / "mask.png").read_bytes()
    assert (inpaint.strength, inpaint.mask_blur, inpaint.padding_crop, inpaint.keep_unmasked) == (0.5, 0, 0, True)
    assert inpaint.HasField("mask_blur")
    assert inpaint.HasField("padding_crop")


def test_outpaint(sent):
    margins = sent("edit", "photo.png", "a", "--outpaint", "1,0,30,4").outpaint
    assert (margins.left, margins.top, margins.right, margins.bottom) == (1, 0, 30, 4)
    assert sent("edit", "photo.png", "a", "--outpaint", "16").outpaint.bottom == 16
    assert sent("edit", "photo.png", "", "--height", "64", "--resize-mode", "pad").resize_mode == 2


def test_an_edit_names_its_files_by_prompt_or_picture(darkroom):
    assert darkroom("edit", "photo.png", "").stdout == "photo-7.png\n"
    assert "PROMPT" in darkroom("edit", "photo.png", exit_code=2).stderr
    assert darkroom("edit", "photo.png", "a", "b").stdout.splitlines() == ["1-a-7.png", "2-b-7.png"]
    result = darkroom("edit", "photo.png", "a", "--previews", "p", "--out", "a.png")
    assert result.stdout.splitlines() == ["a.png", "p/contact-sheet.png"]
    lines = darkroom("edit", "photo.png", "a", "--json").stdout.splitlines()
    assert [json.loads(line)["event"] for line in lines][-2:] == ["image", "completed"]


@pytest.mark.parametrize(
    ("arguments", "option", "problem"),
    [
        ("--mask mask.png --outpaint 8", "--outpaint", "cannot be combined with --mask"),
        ("--strength 1 --outpaint 8", "--outpaint", "cannot be combined with --strength"),
        ("--mask-blur 0", "--mask-blur", "needs --mask"),
        ("--padding-crop 0", "--padding-crop", "needs --mask"),
        ("--keep-unmasked", "--keep-unmasked", "needs --mask"),
        ("--outpaint 8,8", "--outpaint", "'8,8' is not LEFT,TOP,RIGHT,BOTTOM"),
        ("--outpaint 0,0,-8,0", "--outpaint", "is not LEFT,TOP,RIGHT,BOTTOM"),
        ("--outpaint 0", "--outpaint", "greater than 0"),
        ("--resize-mode pad", "--resize-mode", "needs --width or --height"),
        ("--mask none.png", "--mask", "there is no file none.png"),
        ("--lora ink:strong", "--lora", "is not NAME or NAME:WEIGHT"),
        ("--control depth", "--control", "is not MODEL=PHOTO"),
        ("--control depth=photo.png", "--control", "--preprocess depth=NAME, or give a map by --control-map depth=MAP"),
        ("--control-map depth=none.png", "--control-map", "there is no file none.png"),
        ("--preprocess depth=blur", "--preprocess", "needs --control"),
        ("--control-map depth=mask.png --preprocess depth=blur", "--preprocess", "there is no --control depth="),
        ("--control-map depth=mask.png --control-option other.end=1", "--control-option", "no --control other="),
        (
            "--control-map depth=mask.png --control-option depth.scale=1",
            "--control-option",
            "'scale' must be one of",
        ),
        ("--control-map depth=mask.png --control-option end=1", "--control-option", "is not MODEL.KEY=VALUE"),
        ("--echo-maps d", "--echo-maps", "needs --control"),
    ],
)
def test_contradictions_are_told_before_the_call(darkroom, scripted, arguments, option, problem):
    stderr = darkroom("edit", "photo.png", "a", *arguments.split(), exit_code=2).stderr
    assert f"Invalid value for {option}:" in stderr
    assert problem in " ".join(stderr.replace("│", " ").split())
    assert scripted.requests == []


def test_a_picture_that_is_not_there(darkroom):
    assert "there is no file none.png" in darkroom("edit", "none.png", "a", exit_code=2).stderr
    assert "there is no file none.png" in darkroom("preprocess", "canny", "none.png", exit_code=2).stderr


def test_loras(sent):
    loras = sent("generate", "a", "--lora", "v1.0/ink:-0.5", "--lora", "grain").parameters.loras
    assert [(each.name, each.weight, each.HasField("weight")) for each in loras] == [
        ("v1.0/ink", -0.5, True),
        ("grain", 0, False),
    ]


def test_a_photo_goes_through_the_usual_preprocessor_or_another(sent, tmp_path):
    photo = (tmp_path / "photo.png").read_bytes()
    (control,) = sent("generate", "a", "--control", "v1.1/canny=photo.png:0.5").parameters.controls
    assert (control.model, control.preprocessor, control.scale, control.image) == ("v1.1/canny", "canny", 0.5, photo)
    assert not control.HasField("preprocessor_options")
    assert not control.echo_map
    more = "--preprocess depth=blur --preprocess-option depth.sigma=2 --preprocess-option v1.1/canny.blur=1"
    options = "--control-option depth.start=0.25 --control-option v1.1/canny.guess_mode=true"
    words = f"--control v1.1/canny=photo.png --control depth=photo.png {more} {options}"
    canny, depth = sent("edit", "photo.png", "a", *words.split()).parameters.controls
    assert (canny.preprocessor, canny.guess_mode, dict(canny.preprocessor_options)) == ("canny", True, {"blur": 1})
    assert (depth.preprocessor, depth.start, dict(depth.preprocessor_options)) == ("blur", 0.25, {"sigma": 2})
    assert not depth.HasField("scale")


def test_a_map_goes_as_it_is(sent, darkroom, tmp_path):
    (tmp_path / "a=b:2").write_bytes(b"map")
    (control,) = sent("generate", "a", "--control-map", "depth=a=b:2").parameters.controls
    assert (control.image, control.preprocessor, control.HasField("scale")) == (b"map", "", False)
    (control,) = sent("generate", "a", "--control-map", "depth=a=b:2:0").parameters.controls
    assert (control.image, control.HasField("scale"), control.scale) == (b"map", True, 0)


def test_a_control_net_that_is_not_there(darkroom):
    stderr = darkroom("generate", "a", "--control", "canny=photo.png", exit_code=1).stderr
    assert (
        stderr == "error: the server has no ControlNet 'canny' (did you mean 'v1.1/canny'?); it has v1.1/canny, depth\n"
    )


@pytest.mark.parametrize(
    ("text", "path", "scale"),
    [
        (r"C:\pictures\a.png", r"C:\pictures\a.png", None),
        (r"C:\pictures\a.png:0.5", r"C:\pictures\a.png", 0.5),
        ("a.png:.5", "a.png", 0.5),
        ("a.png:-1", "a.png", -1.0),
        ("12:30.png", "12:30.png", None),
        ("a.png:", "a.png:", None),
        ("a.png:nan", "a.png:nan", None),
    ],
)
def test_a_path_and_its_scale(text, path, scale):
    found, number = parse_scaled_path(text)
    assert (str(found), number) == (path, scale)


def test_maps_are_kept(darkroom, scripted, make_events, tmp_path):
    def script(request, context):
        assert all(each.echo_map for each in request.parameters.controls)
        events = make_events(request.request_id)
        yield events.accepted()
        yield from (events.control_image(index) for index in (0, 1))
        yield from (events.image(), events.completed())

    scripted.script = script
    controls = ("--control", "v1.1/canny=photo.png", "--control-map", "depth=mask.png")
    result = darkroom("generate", "a", *controls, "--echo-maps", "m", "--out", "a.png")
    assert result.stdout.splitlines() == ["a.png", "m/control-1-v1-1-canny.png", "m/control-2-depth.png"]
    assert (tmp_path / "m/control-2-depth.png").exists()
    lines = darkroom("generate", "a", *controls, "--echo-maps", "m", "--json").stdout.splitlines()
    made = json.loads(lines[1])
    assert (made["event"], made["control_index"], made["path"]) == ("control_image", 0, "m/control-1-v1-1-canny.png")
    several = darkroom("generate", "a", "b", *controls, "--echo-maps", "m").stdout
    assert "m/job-02-control-2-depth.png" in several


def test_compare_schedulers_takes_them_too(darkroom, scripted):
    words = "--scheduler ddim --lora ink:0.5 --control v1.1/canny=photo.png:2 --prompt-syntax weighted --clip-skip 1"
    darkroom("compare-schedulers", "a", *words.split())
    parameters = scripted.requests[0].parameters
    assert (parameters.loras[0].weight, parameters.controls[0].preprocessor) == (0.5, "canny")
    assert (parameters.prompt_syntax, parameters.clip_skip, parameters.num_inference_steps) == (2, 1, 25)


def test_a_recipe_keeps_its_loras(sent, tmp_path):
    old = recipe(tmp_path / "old.png", prompt="old", loras=[{"name": "ink", "weight": 0.5}])
    assert sent("generate", "--from", old).parameters.loras[0].weight == 0.5
    assert [each.name for each in sent("generate", "--from", old, "--lora", "grain").parameters.loras] == ["grain"]


def test_a_recipe_says_what_pictures_it_lacks(darkroom, sent, tmp_path):
    options = {"preprocessor": "canny", "preprocessor_options": {"blur": 1, "low_threshold": 3}}
    controls = [{"model": "v1.1/canny", "scale": 0.5, "end": 0.5, **options}, {"model": "depth", "start": 0.25}]
    old = recipe(tmp_path / "old.png", prompt="old", controls=controls)
    problem = darkroom("generate", "--from", old, exit_code=2).stderr
    assert "--control v1.1/canny=PHOTO --control-map depth=MAP, or" in " ".join(problem.replace("│", " ").split())
    problem = darkroom("generate", "--from", old, "--control-map", "depth=mask.png", exit_code=2).stderr
    assert "--control v1.1/canny=PHOTO, or --no-controls" in " ".join(problem.replace("│", " ").split())
    words = "--control v1.1/canny=photo.png --control-map depth=mask.png:2 --preprocess-option v1.1/canny.blur=0"
    canny, depth = sent("generate", "--from", old, *words.split()).parameters.controls
    assert (canny.scale, canny.end, canny.preprocessor) == (0.5, 0.5, "canny")
    assert dict(canny.preprocessor_options) == {"blur": 0, "low_threshold": 3}
    assert (depth.scale, depth.start, depth.preprocessor) == (2, 0.25, "")
    canny, _ = sent("generate", "--from", old, *words.split(), "--preprocess", "v1.1/canny=blur").parameters.controls
    assert (canny.preprocessor, dict(canny.preprocessor_options)) == ("blur", {"blur": 0})
    assert not sent("generate", "--from", old, "--no-controls").parameters.controls
    other = sent("generate", "--from", old, "--no-controls", "--control-map", "depth=mask.png").parameters.controls
    assert [(each.model, each.start) for each in other] == [("depth", 0)]


@pytest.mark.parametrize(
    ("task", "again"),
    [
        ("img2img", "edit IMAGE --from"),
        ("inpaint", "edit IMAGE --mask MASK --from"),
        ("outpaint", "edit IMAGE --from"),
    ],
)
def test_the_recipe_of_an_edit_needs_its_picture(darkroom, tmp_path, task, again):
    recipe(tmp_path / "old.png", prompt="old", task=task)
    stderr = darkroom("generate", "--from", "old.png", exit_code=2).stderr
    assert f"darkroom {again} old.png" in " ".join(stderr.replace("│", " ").split())


def test_a_recipe_for_an_edit(darkroom, sent, tmp_path):
    common = {"prompt": "old", "seed": "5", "width": 512, "height": 512}
    recipe(tmp_path / "made.png", task="txt2img", **common)
    recipe(tmp_path / "inpainted.png", task="inpaint", **common)
    recipe(tmp_path / "remixed.png", task="remix", **common)
    parameters = sent("edit", "photo.png", "--from", "made.png").parameters
    assert (parameters.prompt, parameters.seed, parameters.task, parameters.HasField("width")) == ("old", 5, "", False)
    assert sent("edit", "photo.png", "--from", "remixed.png").parameters.task == "remix"
    words = "--mask mask.png --width 64 --resize-mode pad"
    parameters = sent("edit", "photo.png", "new", "--from", "inpainted.png", *words.split()).parameters
    assert (parameters.prompt, parameters.width, parameters.height, parameters.task) == ("new", 64, 512, "")
    assert sent("edit", "photo.png", "--from", "remixed.png", "--resize-mode", "pad").resize_mode == 2
    problem = darkroom("edit", "photo.png", "--from", "inpainted.png", exit_code=2).stderr
    assert "it needs --mask MASK" in " ".join(problem.replace("│", " ").split())


def test_the_recipe_of_an_edit_says_what_was_done(sent, tmp_path):
    inpaint = {"strength": 0.5, "mask_blur": 2, "keep_unmasked": True}
    recipe(tmp_path / "inpainted.png", {"edit": {"inpaint": inpaint}}, task="inpaint")
    again = sent("edit", "photo.png", "--from", "inpainted.png", "--mask", "mask.png").inpaint
    assert (again.strength, again.mask_blur, again.keep_unmasked, again.HasField("padding_crop")) == (
        0.5,
        2,
        True,
        False,
    )
    words = ("--mask", "mask.png", "--strength", "0.7")
    assert sent("edit", "photo.png", "--from", "inpainted.png", *words).inpaint.strength == 0.7
    assert sent("edit", "photo.png", "--from", "inpainted.png", "--outpaint", "8").outpaint.left == 8
    recipe(tmp_path / "wide.png", {"edit": {"outpaint": {"left": 3, "bottom": 5}}}, task="outpaint")
    outpaint = sent("edit", "photo.png", "--from", "wide.png").outpaint
    assert (outpaint.left, outpaint.top, outpaint.right, outpaint.bottom) == (3, 0, 0, 5)


def test_preprocess(darkroom, scripted, make_events, tmp_path):
    def script(request, context):
        events = make_events(request.request_id)
        yield from (events.accepted(), events.control_image(), events.completed())

    scripted.script = script
    result = darkroom("preprocess", "canny", "photo.png", "--option", "low_threshold=50", "--option", "kind=a")
    assert result.stdout == "photo-canny.png\n"
    request = scripted.requests[0]
    assert (request.preprocessor, request.image) == ("canny", (tmp_path / "photo.png").read_bytes())
    assert dict(request.preprocessor_options) == {"low_threshold": 50, "kind": "a"}
    assert darkroom("preprocess", "canny", "photo.png").stdout == "photo-canny-2.png\n"
    assert darkroom("preprocess", "canny", "photo.png", "--out", "maps/").stdout == "maps/photo-canny.png\n"
    assert darkroom("preprocess", "canny", "photo.png", "--out", "edges.jpg").stdout == "edges.jpg\n"
    assert scripted.requests[-1].format == 2
