"""What the keywords become on the wire, and what the client can be asked beside jobs."""

import dataclasses
import inspect
import math
import pydoc
from io import BytesIO

import PIL.Image
import pytest

from darkroom.v1 import catalog_service_pb2, image_service_pb2, parameters_pb2
from darkroom_client import (
    AsyncClient,
    AsyncStream,
    Client,
    ControlSpec,
    InvalidRequest,
    LoraSpec,
    OutputOptions,
    PreviewOptions,
    Recipe,
    SchedulerSpec,
    SizeConditioning,
    Stream,
    catalog,
    options,
)

CATALOG = (
    *("Device", "ServerLimits", "Plugin", "Preset", "Model", "Task", "Scheduler", "Lora", "ControlNet"),
    "Preprocessor",
)


@pytest.fixture
def request_of(scripted, client):
    """The request that `generate` sends for these arguments."""

    def generate(*args, **kwargs):
        stream = client.generate(*args, **kwargs)
        scripted.wait_started(stream.request_id)
        return next(request for request in scripted.requests if request.request_id == stream.request_id)

    return generate


def test_nothing_given_means_nothing_set(request_of):
    request = request_of("a red circle")
    assert len(request.request_id) == 32
    request.ClearField("request_id")
    assert request == image_service_pb2.GenerateRequest(parameters=parameters_pb2.Parameters(prompt="a red circle"))


def test_every_keyword_reaches_its_field(request_of):
    request = request_of(
        "a red circle",
        task="txt2img",
        model="shapes",
        negative_prompt="",
        prompt_2="b",
        negative_prompt_2="c",
        prompt_syntax="weighted",
        width=64,
        height=72,
        num_images=2,
        num_inference_steps=30,
        guidance_scale=0.0,
        guidance_rescale=0.5,
        guidance_start=0.1,
        guidance_end=0.9,
        cache_interval=3,
        clip_skip=1,
        eta=0.25,
        seed=0,
        scheduler=SchedulerSpec("dpmpp-2m", "karras", "trailing", {"solver_order": 3, "nested": {"a": [1, None]}}),
        loras=[LoraSpec("a", 0.0), "b"],
        controls=[ControlSpec("canny", b"map", scale=0.0, end=0.5, guess_mode=True)],
        size_conditioning=SizeConditioning(original_width=1024),
        extensions={"vignette": {"strength": 0.5}},
        preset="fast",
        hires_fix=2,
        preview=PreviewOptions("latent-rgb", every_n_steps=2, max_edge=128, format="webp"),
        output=OutputOptions("jpeg", 90, embed_metadata=False),
        request_id="mine",
        disconnect_policy="keep",
        deterministic=True,
    )
    parameters = request.parameters
    assert [field for field, _ in parameters.ListFields()] == sorted(
        parameters.DESCRIPTOR.fields, key=lambda field: field.number
    )
    assert parameters.HasField("negative_prompt")
    assert (parameters.seed, parameters.guidance_scale) == (0, 0.0)
    assert parameters.HasField("seed")
    assert parameters.HasField("guidance_scale")
    assert parameters.prompt_syntax == parameters_pb2.PROMPT_SYNTAX_WEIGHTED
    spec = parameters.scheduler
    assert (spec.name, spec.sigma_schedule, spec.timestep_spacing) == ("dpmpp-2m", 2, 3)
    assert spec.options["solver_order"] == 3
    assert parameters.hires_fix == parameters_pb2.HiresFix(factor=2.0)
    assert spec.options["nested"]["a"][1] is None
    assert [(lora.name, lora.HasField("weight")) for lora in parameters.loras] == [("a", True), ("b", False)]
    assert (parameters.controls[0].image, parameters.controls[0].scale, parameters.controls[0].end) == (b"map", 0, 0.5)
    assert parameters.extensions["vignette"]["strength"] == 0.5
    assert (request.preview.mode, request.preview.format) == (2, 3)
    assert (request.output.format, request.output.quality, request.output.HasField("embed_metadata")) == (2, 90, True)
    assert (request.request_id, request.disconnect_policy, request.deterministic) == ("mine", 2, True)


def test_short_forms(request_of):
    request = request_of("a", scheduler="euler", loras={"a": 0.5}, preview="off", output="webp")
    assert request.parameters.scheduler == parameters_pb2.SchedulerSpec(name="euler")
    assert [(lora.name, lora.weight) for lora in request.parameters.loras] == [("a", 0.5)]
    assert (request.preview.mode, request.output.format) == (1, 3)
    loras = request_of("a", loras=["a:-0.5", "b"]).parameters.loras
    assert [(lora.name, lora.weight, lora.HasField("weight")) for lora in loras] == [("a", -0.5, True), ("b", 0, False)]
    request = request_of("a", scheduler={"name": "euler", "options": {"x": 1}})
    assert request.parameters.scheduler.options["x"] == 1
    spec = parameters_pb2.SchedulerSpec(name="ddim")
    assert request_of("a", scheduler=spec).parameters.scheduler == spec


def test_parameters_are_the_base_and_keywords_override(request_of):
    base = parameters_pb2.Parameters(prompt="old", seed=3, num_inference_steps=20)
    base.scheduler.options.update({"x": 1})
    base.extensions["a"].update({"k": 1})
    base.extensions["b"].update({"k": 2})
    request = request_of(parameters=base, num_inference_steps=30, scheduler="ddim", extensions={"a": {"l": 3}})
    parameters = request.parameters
    assert (parameters.prompt, parameters.seed, parameters.num_inference_steps) == ("old", 3, 30)
    assert parameters.scheduler == parameters_pb2.SchedulerSpec(name="ddim")
    assert {name: dict(values) for name, values in parameters.extensions.items()} == {"a": {"l": 3}, "b": {"k": 2}}
    assert request_of("new", parameters=base).parameters.prompt == "new"
    request = request_of(parameters=Recipe(base, deterministic=True))
    assert (request.deterministic, request.parameters) == (True, base)
    assert request_of(parameters=Recipe(base, deterministic=True), deterministic=False).deterministic is False
    recipe = {"darkroom": "1", "parameters": {"prompt": "p", "seed": str(2**63 - 1), "new_field": 1}}
    assert request_of(parameters=recipe).parameters.seed == 2**63 - 1


def test_all_misfits_are_told_at_once(client):
    with pytest.raises(InvalidRequest) as caught:
        client.generate(
            "a",
            seed=2**63,
            width="wide",
            scheduler=SchedulerSpec("x", sigma_schedule="cubic"),
            preview="maybe",
            extensions={"a": {"x": object()}},
            loras=["a", 3, "b:much"],
        )
    assert {violation.field for violation in caught.value.violations} == {
        "parameters.seed",
        "parameters.width",
        "parameters.scheduler.sigma_schedule",
        "parameters.extensions['a']",
        "parameters.loras[1]",
        "parameters.loras[2]",
        "preview.mode",
    }
    assert "default, karras, exponential, beta" in str(caught.value)


def test_unknown_keywords_are_a_type_error(client):
    with pytest.raises(TypeError, match="steps"):
        client.generate("a", steps=3)


def test_not_a_number_is_left_to_the_server(request_of):
    assert math.isnan(request_of("a", guidance_scale=math.nan).parameters.guidance_scale)


def test_edits(scripted, client, tmp_path):
    picture = PIL.Image.new("RGB", (8, 8), "blue")
    path = tmp_path / "a.png"
    picture.save(path)

    def edit(*args, **kwargs):
        stream = client.edit(*args, **kwargs)
        scripted.wait_started(stream.request_id)
        return next(request for request in scripted.requests if request.request_id == stream.request_id)

    request = edit(path, "a red circle", strength=0.0, seed=1, resize_mode="pad")
    assert request.WhichOneof("edit") == "image_to_image"
    assert request.image_to_image.HasField("strength")
    assert (request.image, request.resize_mode, request.parameters.seed) == (path.read_bytes(), 2, 1)
    request = edit(picture, mask=str(path), mask_blur=0, keep_unmasked=True)
    assert PIL.Image.open(BytesIO(request.image)).getpixel((0, 0)) == (0, 0, 255)
    assert (request.inpaint.mask, request.inpaint.HasField("mask_blur")) == (path.read_bytes(), True)
    assert edit(b"bytes", margins=(1, 2, 3, 4)).outpaint.bottom == 4
    assert edit(b"bytes", task="remix").WhichOneof("edit") is None
    with pytest.raises(TypeError, match="mask_blur needs a mask"):
        client.edit(b"bytes", mask_blur=3)
    with pytest.raises(TypeError, match="margins cannot"):
        client.edit(b"bytes", mask=b"m", margins=(1, 2, 3, 4))
    with pytest.raises(InvalidRequest, match=r"image: there is no file .*missing\.png"):
        client.edit(tmp_path / "missing.png")


def test_preprocess(scripted, client):
    stream = client.preprocess(b"picture", "canny", options={"low": 100}, format="png")
    scripted.wait_started(stream.request_id)
    request = scripted.requests[-1]
    assert (request.image, request.preprocessor, request.format) == (b"picture", "canny", 1)
    assert request.preprocessor_options["low"] == 100


def test_control_images(scripted, client, make_events):
    def script(request, context):
        events = make_events(request.request_id)
        yield from (events.accepted(), events.control_image(1), events.control_image(0), events.completed())

    scripted.script = script
    assert [each.control_index for each in client.preprocess(b"picture", "canny").control_images()] == [0, 1]


def test_the_catalog(client):
    assert client.server_info().default_model == "shapes"
    (model,) = client.models()
    assert (model.name, model.preview_modes, model.default_preview_mode) == (
        "shapes",
        ("off", "latent-rgb", "full-vae"),
        None,
    )
    assert [scheduler.name for scheduler in client.schedulers()] == ["ddim", "euler", "lcm"]
    progress = []
    assert client.load_model("shapes", progress.append).weight_bytes == 2
    assert [(event.model, event.phase, event.bytes_done) for event in progress] == [("shapes", "read", 1)]
    assert client.unload_model("shapes") == 2


def test_address_and_token(scripted, monkeypatch):
    monkeypatch.setenv("DARKROOM_ADDRESS", scripted.address)
    monkeypatch.setenv("DARKROOM_TOKEN", "secret")
    with Client() as client:
        assert client.address == scripted.address
        client.server_info()
        client.generate("a").image()
    with Client(token="other") as client:
        client.server_info()
    assert [each["authorization"] for each in scripted.metadata] == ["Bearer secret", "Bearer secret", "Bearer other"]
    monkeypatch.delenv("DARKROOM_ADDRESS")
    assert Client().address == "127.0.0.1:50051"
    with pytest.raises(TypeError, match="password"):
        Client(password="secret")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (options.SchedulerSpec, parameters_pb2.SchedulerSpec),
        (options.LoraSpec, parameters_pb2.LoraSpec),
        (options.ControlSpec, parameters_pb2.ControlSpec),
        (options.SizeConditioning, parameters_pb2.SizeConditioning),
        (options.HiresFix, parameters_pb2.HiresFix),
        (options.PreviewOptions, parameters_pb2.PreviewOptions),
        (options.OutputOptions, parameters_pb2.OutputOptions),
        (catalog.ServerInfo, catalog_service_pb2.GetServerInfoResponse),
        (catalog.ServerLoad, catalog_service_pb2.GetServerLoadResponse),
        (catalog.BatchLoad, catalog_service_pb2.BatchLoad),
        (catalog.WeightsLoad, catalog_service_pb2.WeightsLoad),
        (catalog.ModelReplica, catalog_service_pb2.ModelReplica),
        *((getattr(catalog, name), getattr(catalog_service_pb2, name)) for name in CATALOG),
    ],
)
def test_records_have_the_fields_of_their_messages(spec, message):
    assert [field.name for field in dataclasses.fields(spec)] == [field.name for field in message.DESCRIPTOR.fields]


def test_keywords_are_the_fields_of_the_messages():
    fields = {field.name for field in parameters_pb2.Parameters.DESCRIPTOR.fields}
    assert set(options.ParameterOptions.__annotations__) == fields - {"prompt"}
    fields = {field.name for field in image_service_pb2.GenerateRequest.DESCRIPTOR.fields}
    assert set(options.JobOptions.__annotations__) - set(options.ParameterOptions.__annotations__) == fields | {
        "timeout",
        "keep",
    }


def public(cls):
    return {
        name: list(inspect.signature(value).parameters)
        for name, value in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_")
    }


@pytest.mark.parametrize("call", [Client.generate, Client.edit, AsyncClient.generate, AsyncClient.edit])
def test_help_lists_every_keyword(call):
    listed = inspect.signature(call).parameters
    assert set(options.JobOptions.__annotations__) <= listed.keys()
    assert "options" not in listed
    assert listed["seed"].annotation == int | None
    assert "num_inference_steps: int | None = None" in pydoc.render_doc(call)


def test_help_lists_what_a_client_takes():
    assert set(options.ConnectionOptions.__annotations__) <= inspect.signature(Client).parameters.keys()


def test_both_clients_offer_the_same():
    assert public(Client) == public(AsyncClient)
    assert inspect.signature(Client) == inspect.signature(AsyncClient)
    assert public(Stream).keys() == public(AsyncStream).keys() - {"next_event", "hang_up"}


def test_true_is_no_factor(client):
    with pytest.raises(InvalidRequest) as refused:
        client.generate("a", hires_fix=True)
    assert [str(each) for each in refused.value.violations] == ["parameters.hires_fix: cannot be made from bool"]


def test_values_that_do_not_fit_their_field_are_named_all_at_once(client):
    values = {"seed": 2**64, "width": "64", "num_inference_steps": 1.5, "guidance_scale": "x", "negative_prompt": 3}
    with pytest.raises(InvalidRequest) as refused:
        client.generate("a", **values)
    assert {violation.field: violation.description for violation in refused.value.violations} == {
        "parameters.seed": "must be a whole number that fits 64 bits, not 18446744073709551616",
        "parameters.width": "must be a whole number that fits 32 bits, not '64'",
        "parameters.num_inference_steps": "must be a whole number that fits 32 bits, not 1.5",
        "parameters.guidance_scale": "must be a number, not 'x'",
        "parameters.negative_prompt": "must be a text, not 3",
    }
