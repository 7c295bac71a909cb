"""The names of enum values: one spelling comes out, every spelling goes in."""

import json
from typing import get_args

import pytest

import darkroom_client
from darkroom.v1 import catalog_service_pb2, edits_pb2, events_pb2, parameters_pb2
from darkroom_client import InvalidRequest, PreviewOptions, SchedulerSpec

MODES = {"off": 1, "latent-rgb": 2, "tiny-vae": 3, "full-vae": 4}
SPELLINGS = [
    pytest.param(lambda name: name, id="name"),
    pytest.param(str.upper, id="NAME"),
    pytest.param(lambda name: name.replace("-", "_"), id="underscores"),
    pytest.param(lambda name: name.replace("-", "_").title(), id="Title_Case"),
]


@pytest.fixture
def sent(scripted, client):
    """The request that `generate` or `edit` sends for these keywords."""

    def send(image=None, **keywords):
        (client.generate("a", **keywords) if image is None else client.edit(image, "a", **keywords)).image()
        return scripted.requests[-1]

    return send


@pytest.mark.parametrize(
    "enum",
    [
        catalog_service_pb2.Residency,
        catalog_service_pb2.SafetyPolicy,
        edits_pb2.ResizeMode,
        events_pb2.LoadingPhase,
        events_pb2.SafetyVerdict,
        parameters_pb2.DisconnectPolicy,
        parameters_pb2.ImageFormat,
        parameters_pb2.PreviewMode,
        parameters_pb2.Priority,
        parameters_pb2.PromptSyntax,
        parameters_pb2.SigmaSchedule,
        parameters_pb2.TimestepSpacing,
    ],
    ids=lambda enum: enum.DESCRIPTOR.name,
)
def test_the_types_list_the_names_of_the_protos(enum):
    unset, *values = enum.DESCRIPTOR.values
    prefix = unset.name.removesuffix("UNSPECIFIED")
    names = [value.name.removeprefix(prefix).lower().replace("_", "-") for value in values]
    assert list(get_args(getattr(darkroom_client, f"{enum.DESCRIPTOR.name}Name"))) == names


@pytest.mark.parametrize("spelled", SPELLINGS)
@pytest.mark.parametrize(("name", "number"), MODES.items())
def test_preview_modes_are_read_in_any_spelling(sent, darkroom, scripted, name, number, spelled):
    assert sent(preview=spelled(name)).preview.mode == number
    assert sent(preview=PreviewOptions(spelled(name))).preview.mode == number
    assert sent(preview=f"PREVIEW_MODE_{name.upper().replace('-', '_')}").preview.mode == number
    darkroom("generate", "a", "--preview", spelled(name))
    assert scripted.requests[-1].preview.mode == number


@pytest.mark.parametrize("spelled", SPELLINGS)
def test_the_other_names_are_read_in_any_spelling(sent, spelled):
    scheduler = SchedulerSpec(sigma_schedule=spelled("karras"), timestep_spacing=spelled("trailing"))
    words = {"output": spelled("webp"), "prompt_syntax": spelled("weighted"), "disconnect_policy": spelled("keep")}
    request = sent(b"picture", resize_mode=spelled("pad"), scheduler=scheduler, **words)
    spec = request.parameters.scheduler
    assert (spec.sigma_schedule, spec.timestep_spacing, request.parameters.prompt_syntax) == (2, 3, 2)
    assert (request.output.format, request.disconnect_policy, request.resize_mode) == (3, 2, 2)


def test_the_command_line_reads_the_other_names_in_any_spelling(darkroom, scripted, tmp_path):
    (tmp_path / "photo.png").write_bytes(b"photo")
    words = "--sigma-schedule KARRAS --timestep-spacing Trailing --prompt-syntax Weighted --resize-mode PAD --width 64"
    darkroom("edit", "photo.png", "a", *words.split(), "--format", "JPEG", "--out", "a.jpg")
    request = scripted.requests[-1]
    spec = request.parameters.scheduler
    assert (spec.sigma_schedule, spec.timestep_spacing, request.parameters.prompt_syntax) == (2, 3, 2)
    assert (request.output.format, request.resize_mode) == (2, 2)


def test_unknown_names_are_refused_with_a_list_of_the_known(client, darkroom, scripted):
    with pytest.raises(InvalidRequest, match="must be one of off, latent-rgb, tiny-vae, full-vae, not 'latent'"):
        client.generate("a", preview="latent")
    stderr = darkroom("generate", "a", "--preview", "latent", exit_code=2).stderr
    assert "must be one of off, latent-rgb, tiny-vae, full-vae, not 'latent'" in stderr
    assert scripted.requests == []


@pytest.mark.parametrize(("name", "number"), [*MODES.items(), (None, 0), (None, 99)])
def test_events_give_the_name(scripted, client, darkroom, make_events, name, number):
    def script(request, context):
        events = make_events(request.request_id)
        return [events.accepted(), events.preview(1, decoder=number), events.image(), events.completed()]

    scripted.script = script
    assert list(client.generate("a"))[1].decoder == name
    lines = [json.loads(line) for line in darkroom("generate", "a", "--json").stdout.splitlines()]
    assert lines[1]["decoder"] == name


def test_help_and_the_list_of_models_give_the_names(darkroom):
    assert "off, latent-rgb, tiny-vae or full-vae" in darkroom("generate", "--help").stdout
    assert "off, latent-rgb, full-vae" in darkroom("models").stdout
