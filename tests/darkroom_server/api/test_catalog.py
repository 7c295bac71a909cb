"""What the server says of itself is true: what it lists it takes, and what it does not list it refuses."""

from pathlib import Path
from typing import Any

import diffusers
import grpc
import jsonschema
import pytest
import torch
from google.protobuf import descriptor_pb2
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from darkroom.v1 import catalog_service_pb2 as pb
from darkroom.v1 import parameters_pb2
from darkroom_plugins.version import VERSION
from tests.support import RunningServer

SERVICES = {"darkroom.v1.ImageService", "darkroom.v1.CatalogService"}
SCHEDULERS = {
    *("ddpm", "ddim", "euler", "euler-ancestral", "dpmpp-2m", "dpmpp-2m-sde", "dpmpp-sde", "dpmpp-3m-sde", "unipc"),
    *("pndm", "heun", "kdpm2", "kdpm2-ancestral", "lms", "deis", "ipndm", "sa-solver", "lcm", "tcd"),
}


def one_step(server: RunningServer, **parameters: Any) -> Any:
    """The parameters as the server resolved them."""
    preview = parameters_pb2.PreviewOptions(mode=parameters_pb2.PREVIEW_MODE_OFF)
    stream = server.generate(**{"prompt": "x", "num_inference_steps": 1, **parameters}, preview=preview)
    assert stream.kinds[-1] == "completed"
    return stream.of("accepted")[0].parameters


@pytest.fixture(scope="module")
def info(server: RunningServer) -> pb.GetServerInfoResponse:
    return server.catalog.GetServerInfo(pb.GetServerInfoRequest())


@pytest.fixture(scope="module")
def models(server: RunningServer) -> dict[str, pb.Model]:
    response = server.catalog.ListModels(pb.ListModelsRequest())
    assert [model.name for model in response.models] == sorted(model.name for model in response.models)
    return {model.name: model for model in response.models}


@pytest.fixture(scope="module")
def schedulers(server: RunningServer) -> dict[str, pb.Scheduler]:
    response = server.catalog.ListSchedulers(pb.ListSchedulersRequest())
    assert [each.name for each in response.schedulers] == sorted(each.name for each in response.schedulers)
    return {scheduler.name: scheduler for scheduler in response.schedulers}


# ------------------------------------------------------------------------------------------------------ GetServerInfo


def test_server_info_has_versions_and_devices(info: pb.GetServerInfoResponse) -> None:
    assert (info.version, info.api_version) == (VERSION, "darkroom.v1")
    assert (info.torch_version, info.diffusers_version) == (torch.__version__, diffusers.__version__)
    assert info.devices
    assert all(device.id and device.name for device in info.devices)
    assert info.default_model == "tiny"


def test_server_info_has_every_limit(info: pb.GetServerInfoResponse) -> None:
    limits = MessageToDict(info.limits, preserving_proto_field_name=True)
    assert set(limits) == {field.name for field in pb.ServerLimits.DESCRIPTOR.fields}
    assert info.limits.job_retention_seconds == 3600
    assert info.limits.max_request_bytes == 32 * 2**20
    assert info.limits.chunk_bytes <= 3 * 2**20


def test_server_info_lists_plugins(info: pb.GetServerInfoResponse) -> None:
    plugins = {plugin.name: plugin for plugin in info.plugins}
    assert list(plugins) == sorted(plugins)
    assert set(plugins) >= {"previews", "recipe", "schedulers", "sd", "txt2img", "vignette"}
    assert not plugins["vignette"].builtin
    assert plugins["sd"].builtin
    assert all(plugin.version and plugin.hooks for plugin in info.plugins)
    assert [name for name, plugin in plugins.items() if plugin.HasField("extensions_schema")] == ["vignette"]
    schema = MessageToDict(plugins["vignette"].extensions_schema)
    assert schema["properties"]["strength"]["description"]


def test_settings_are_what_is_published(tiny_model: Path) -> None:
    limits = {"max_batch_rows": 4, "max_images": 2, "max_inference_steps": 20, "max_edge": 100, "max_pixels": 4096}
    limits |= {"max_prompt_characters": 5, "max_queued_jobs": 7, "max_request_bytes": 2**20, "chunk_bytes": 1024}
    model = {"name": "a/b.c-d_e", "path": tiny_model, "description": "A model.", "default_scheduler": "euler_a"}
    model |= {"default_num_inference_steps": 12, "default_guidance_scale": 3.5, "default_preview_mode": "full-vae"}
    models = [{"name": "first", "path": tiny_model}, model]
    with RunningServer(models=models, default_model="a/b.c-d_e", limits=limits) as server:
        info = server.catalog.GetServerInfo(pb.GetServerInfoRequest())
        assert {name: getattr(info.limits, name) for name in limits} == limits
        assert info.default_model == "a/b.c-d_e"
        listed = {each.name: each for each in server.catalog.ListModels(pb.ListModelsRequest()).models}
        assert listed["a/b.c-d_e"].is_default
        assert not listed["first"].is_default
        assert (listed["first"].min_size, listed["first"].max_size) == (8, 96)
        schedulers = {each.name: each for each in server.catalog.ListSchedulers(pb.ListSchedulersRequest()).schedulers}
        assert (schedulers["euler"].max_steps, schedulers["lcm"].max_steps) == (20, 20)
        accepted = server.generate(prompt="12345").of("accepted")[0]
        found = accepted.parameters
        assert (found.model, found.num_inference_steps, found.guidance_scale) == ("a/b.c-d_e", 12, 3.5)
        assert found.scheduler.name == listed["a/b.c-d_e"].default_scheduler == "euler-ancestral"
        assert accepted.preview.mode == listed["a/b.c-d_e"].default_preview_mode == parameters_pb2.PREVIEW_MODE_FULL_VAE
        assert accepted.preview.max_edge == 100
        assert one_step(server, width=96, height=40)
        beyond = {"prompt": "123456", "num_images": 3, "num_inference_steps": 21, "width": 104, "height": 96}
        for name, value in beyond.items():
            with pytest.raises(grpc.RpcError) as caught:
                one_step(server, **{name: value, **({"width": 96} if name == "height" else {})})
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, name


# --------------------------------------------------------------------------------------------------------- ListModels


def test_models_are_listed(models: dict[str, pb.Model]) -> None:
    assert set(models) - {"shapes"} == {"tiny", "tiny-v", "tiny-silent"}
    assert [name for name, model in models.items() if model.is_default] == ["tiny"]
    tiny = models["tiny"]
    assert (tiny.family, tiny.tasks, tiny.prediction_type) == (
        "sd",
        ["img2img", "inpaint", "outpaint", "txt2img"],
        "epsilon",
    )
    assert models["tiny-v"].prediction_type == "v_prediction"
    assert (tiny.size_factor, tiny.default_width, tiny.default_height) == (8, 32, 32)
    assert (tiny.min_size, tiny.max_size, tiny.max_pixels) == (8, 4 * 32, 4 * 32 * 32)
    assert (tiny.default_scheduler, tiny.default_num_inference_steps, tiny.default_guidance_scale) == ("pndm", 30, 7.5)
    assert (tiny.residency, tiny.safety_policy) == (pb.RESIDENCY_RESIDENT, pb.SAFETY_POLICY_OFF)
    assert tiny.weight_bytes > 100_000
    assert tiny.device
    assert tiny.dtype in ("float32", "float16")


def test_each_model_makes_what_it_lists(server: RunningServer, models: dict[str, pb.Model]) -> None:
    for name, model in models.items():
        found = one_step(server, model=name)
        assert (found.model, found.width, found.height) == (name, model.default_width, model.default_height)
        assert found.scheduler.name == model.default_scheduler
        assert found.guidance_scale == model.default_guidance_scale
        for mode in model.preview_modes:
            stream = server.generate(
                model=name, num_inference_steps=1, preview=parameters_pb2.PreviewOptions(mode=mode)
            )
            assert {each.decoder for each in stream.of("preview")} <= {mode}
            assert bool(stream.of("preview")) == (mode != parameters_pb2.PREVIEW_MODE_OFF)


# ----------------------------------------------------------------------------------------------------- ListSchedulers


def test_schedulers_are_listed(schedulers: dict[str, pb.Scheduler]) -> None:
    assert set(schedulers) == SCHEDULERS
    assert len(SCHEDULERS) == 19
    for name, scheduler in schedulers.items():
        assert scheduler.description, name
        assert scheduler.plugin == "schedulers"
        assert hasattr(diffusers, scheduler.diffusers_class)
        limit = 50 if name in ("lcm", "tcd") else 500
        assert (scheduler.min_steps, scheduler.max_steps) == (1, limit), name
    assert schedulers["euler-ancestral"].aliases == ["euler_a"]
    assert "dpm++" in schedulers["dpmpp-2m"].aliases
    assert [name for name, scheduler in schedulers.items() if scheduler.takes_eta] == ["ddim", "tcd"]


def test_every_schema_is_a_json_schema(schedulers: dict[str, pb.Scheduler]) -> None:
    for name, scheduler in schedulers.items():
        if scheduler.HasField("parameters_schema"):
            schema = MessageToDict(scheduler.parameters_schema)
            jsonschema.Draft202012Validator.check_schema(schema)
            assert schema["properties"], name
            assert schema["additionalProperties"] is False, name


def test_every_name_and_alias_is_taken(server: RunningServer, schedulers: dict[str, pb.Scheduler]) -> None:
    """With the fewest steps that it lists; an alias comes back as the name."""
    for name, scheduler in schedulers.items():
        for each in (name, *scheduler.aliases):
            found = one_step(server, scheduler=each, num_inference_steps=scheduler.min_steps)
            assert found.scheduler.name == name


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_a_scheduler_takes_what_it_lists_and_nothing_else(
    server: RunningServer, schedulers: dict[str, pb.Scheduler], name: str
) -> None:
    scheduler = schedulers[name]
    for field, enum in (
        ("sigma_schedule", parameters_pb2.SigmaSchedule),
        ("timestep_spacing", parameters_pb2.TimestepSpacing),
    ):
        for value in enum.values()[1:]:
            choice = parameters_pb2.SchedulerSpec(name=name, **{field: value})
            if value in getattr(scheduler, f"{field}s"):
                assert getattr(one_step(server, scheduler=choice, num_inference_steps=2).scheduler, field) == value
            else:
                with pytest.raises(grpc.RpcError) as caught:
                    one_step(server, scheduler=choice)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    if scheduler.takes_eta:
        assert one_step(server, scheduler=name, eta=0.5).eta == 0.5
    else:
        with pytest.raises(grpc.RpcError) as caught:
            one_step(server, scheduler=name, eta=0.5)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


# ------------------------------------------------------------------------------------- ListTasks, reflection, health


def test_tasks_are_listed(server: RunningServer) -> None:
    tasks = {task.name: task for task in server.catalog.ListTasks(pb.ListTasksRequest()).tasks}
    assert list(tasks) == ["img2img", "inpaint", "outpaint", "txt2img"]
    assert all(list(task.rpcs) == ["Edit"] for name, task in tasks.items() if name != "txt2img")
    assert tasks["outpaint"].plugin == "inpaint"
    task = tasks["txt2img"]
    assert (list(task.rpcs), task.plugin) == (["Generate"], "txt2img")
    assert task.description
    assert not task.HasField("parameters_schema")
    assert one_step(server, task=task.name).task == one_step(server).task == "txt2img"


REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")


def reflect(server: RunningServer, service: str, **ask: Any) -> reflection_pb2.ServerReflectionResponse:
    """The answer of a version of reflection; on the wire their messages are the same."""
    call = server.channel.stream_stream(
        f"/{service}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    (answer,) = call(iter([reflection_pb2.ServerReflectionRequest(**ask)]), timeout=20)
    return answer


@pytest.mark.parametrize("version", REFLECTION)
def test_reflection_lists_the_services_and_describes_each(server: RunningServer, version: str) -> None:
    listed = {each.name for each in reflect(server, version, list_services="").list_services_response.service}
    assert listed == {*SERVICES, "grpc.health.v1.Health", *REFLECTION}
    for service in listed:
        files = reflect(server, version, file_containing_symbol=service).file_descriptor_response.file_descriptor_proto
        described = [descriptor_pb2.FileDescriptorProto.FromString(file) for file in files]
        names = {f"{file.package}.{each.name}" for file in described for each in file.service}
        assert service in names


@pytest.mark.parametrize("service", ["", *sorted(SERVICES)])
def test_health_is_serving(server: RunningServer, service: str) -> None:
    stub = health_pb2_grpc.HealthStub(server.channel)
    status = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=20).status
    assert status == health_pb2.HealthCheckResponse.SERVING


def test_health_of_an_unknown_service(server: RunningServer) -> None:
    stub = health_pb2_grpc.HealthStub(server.channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="nope"), timeout=20)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
