"""Controls and LoRAs that are refused, and files that cannot be used."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from grpc import StatusCode
from safetensors.torch import load_file, save_file

from darkroom.v1 import catalog_service_pb2 as catalog_pb
from darkroom.v1.edits_pb2 import Inpaint
from darkroom.v1.parameters_pb2 import ControlSpec, LoraSpec
from darkroom_server.models.model import ModelError
from tests.support import RunningServer, edit_request, generate_request, png, refused, struct

BASE: dict[str, Any] = {"model": "sd", "prompt": "a red circle", "num_inference_steps": 6, "seed": 5}
MAP = png(np.zeros((32, 32, 3), np.uint8))
HOLE_OF_BIG = np.zeros((1024, 1024), np.uint8)
HOLE_OF_BIG[500:530, 500:530] = 255


def control(**fields: Any) -> ControlSpec:
    return ControlSpec(**{"model": "sd-edges", "image": MAP, **fields})


def refusal(server: RunningServer, **arguments: Any) -> tuple[StatusCode, str, set[str]]:
    failed = refused(lambda: server.generate(**{**BASE, **arguments}))
    return failed.code, failed.reason, set(failed.violations)


BAD = (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
REFUSED: dict[str, tuple[dict[str, Any], StatusCode, str, set[str]]] = {
    "an unknown LoRA": (
        {"loras": [LoraSpec(name="no")]},
        StatusCode.NOT_FOUND,
        "LORA_NOT_FOUND",
        {"parameters.loras[0].name"},
    ),
    "an unknown ControlNet": (
        {"controls": [control(model="no")]},
        StatusCode.NOT_FOUND,
        "CONTROLNET_NOT_FOUND",
        {"parameters.controls[0].model"},
    ),
    "an unknown preprocessor": (
        {"controls": [control(preprocessor="no")]},
        StatusCode.NOT_FOUND,
        "PREPROCESSOR_NOT_FOUND",
        {"parameters.controls[0].preprocessor"},
    ),
    "numbers": (
        {
            "loras": [LoraSpec(name="sd-unet-a", weight=float("nan"))],
            "controls": [control(scale=float("inf"), start=-1, end=7), control(start=0.5, end=0.5)],
        },
        *BAD,
        {"parameters.loras[0].weight", "parameters.controls[1].start"}
        | {f"parameters.controls[0].{field}" for field in ("scale", "start", "end")},
    ),
    "options without a preprocessor": (
        {"controls": [control(preprocessor_options=struct({"x": 1}))]},
        *BAD,
        {"parameters.controls[0].preprocessor_options"},
    ),
    "options that it does not have": (
        {"controls": [control(preprocessor="canny", preprocessor_options=struct({"x": 1}))]},
        *BAD,
        {"parameters.controls[0].preprocessor_options.x"},
    ),
    "a map that is none": ({"controls": [control(image=b"no")]}, *BAD, {"parameters.controls[0].image"}),
    "too many": (
        {"controls": [control()] * 9, "loras": [LoraSpec(name=str(i)) for i in range(33)]},
        *BAD,
        {"parameters.loras"},
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_conditions_are_refused_by_their_path(edit_server: RunningServer, name: str) -> None:
    arguments, code, reason, paths = REFUSED[name]
    assert refusal(edit_server, **arguments) == (code, reason, paths)
    assert edit_server.app.jobs.active_jobs == 0


@pytest.fixture(scope="module")
def misfits(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA and a ControlNet of another architecture, and LoRAs that fit in part only."""
    where = tmp_path_factory.mktemp("misfits")
    state = load_file(folder / "sd-unet-a.safetensors")
    wide = {k: torch.zeros(v.shape[0], 99) if "attn2.to_k.lora_A" in k else v for k, v in state.items()}
    save_file(wide, where / "wide.safetensors")
    attention = [k for k in state if "attn1.to_q" in k]
    save_file({k.replace("attn1.to_q", "attn7.to_q"): state[k] for k in attention}, where / "elsewhere.safetensors")
    save_file({**state, "unet.mid_block.nothing.lora_A.weight": torch.zeros(4, 8)}, where / "partly.safetensors")
    shutil.copytree(folder / "sd-edges", where / "net")
    config = (where / "net" / "config.json").read_text()
    (where / "net" / "config.json").write_text(config.replace('"cross_attention_dim": 32', '"cross_attention_dim": 99'))
    return where


@pytest.fixture(scope="module")
def misfit_server(folder: Path, misfits: Path) -> Iterator[RunningServer]:
    files = [{"name": file.stem, "path": file} for file in sorted(misfits.glob("*.safetensors"))]
    with RunningServer(
        models=[{"name": "sd", "path": folder / "sd"}],
        loras=[*files, {"name": "sd-unet-a", "path": folder / "sd-unet-a.safetensors"}],
        controlnets=[{"name": "net", "path": misfits / "net"}],
    ) as running:
        yield running


CANNOT = (StatusCode.FAILED_PRECONDITION, "UNSUPPORTED_COMBINATION")


def test_what_was_made_for_another_model_is_refused(misfit_server: RunningServer) -> None:
    assert refusal(misfit_server, loras=[LoraSpec(name="wide")]) == (*CANNOT, {"parameters.loras[0].name"})
    net = ControlSpec(model="net", image=MAP)
    assert refusal(misfit_server, controls=[net]) == (*CANNOT, {"parameters.controls[0].model"})
    loras = {each.name: each for each in misfit_server.catalog.ListLoras(catalog_pb.ListLorasRequest()).loras}
    assert list(loras["wide"].models) == []
    assert list(loras["sd-unet-a"].models) == ["sd"]


@pytest.mark.parametrize("name", ["elsewhere", "partly"])
def test_a_lora_that_does_not_fit_is_refused_whole(misfit_server: RunningServer, name: str) -> None:
    before = misfit_server.generate(**BASE, deterministic=True)
    for _ in range(2):
        refused = refusal(misfit_server, loras=[LoraSpec(name="sd-unet-a"), LoraSpec(name=name)])
        assert refused == (*CANNOT, {"parameters.loras[1].name"})
    assert misfit_server.generate(**BASE, deterministic=True).files() == before.files()
    assert misfit_server.app.jobs.active_jobs == 0


@pytest.fixture(scope="module")
def unusable(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with a LoRA and a ControlNet that can be used, and some that cannot."""
    where = tmp_path_factory.mktemp("unusable")
    (where / "text.safetensors").write_text("hello")
    state = load_file(folder / "sd-kohya.safetensors")
    save_file({**state, "lora_unet_conv_in.oft_blocks": torch.ones(1, 2, 2)}, where / "oft.safetensors")
    save_file({**state, "vae.conv_in.lora_A.bias": torch.ones(1)}, where / "vae.safetensors")
    shutil.copy(folder / "sd" / "unet" / "diffusion_pytorch_model.safetensors", where / "unet.safetensors")
    shutil.copytree(folder / "sd" / "unet", where / "no-net")
    shutil.copytree(folder / "sd-edges", where / "torn-net")
    weights = load_file(where / "torn-net" / "diffusion_pytorch_model.safetensors")
    weights.pop("conv_in.weight")
    save_file(weights, where / "torn-net" / "diffusion_pytorch_model.safetensors")
    files = [*where.glob("*.safetensors"), where / "gone.safetensors", folder / "sd-kohya.safetensors"]
    nets = [where / "no-net", where / "torn-net", where / "gone-net", where, folder / "sd-edges"]
    with RunningServer(
        models=[{"name": "sd", "path": folder / "sd"}],
        loras=[{"name": file.stem, "path": file} for file in files],
        controlnets=[{"name": net.name, "path": net} for net in nets],
    ) as running:
        yield running


REASONS = {
    "text": "text.safetensors is not a whole safetensors file",
    "oft": "it has lora_unet_conv_in.oft_blocks, which is of OFT; that is not supported",
    "vae": "it has vae.conv_in.lora_A.bias, which is no LoRA's matrix",
    "unet": "which is no LoRA's matrix of a UNet or a text encoder",
    "gone": "there is nothing at gone.safetensors",
    "sd-kohya": "",
    "gone-net": "there is nothing at gone-net",
    "no-net": "it is a UNet2DConditionModel, not a ControlNetModel",
    "torn-net": "its weights are not those of its ControlNetModel: no conv_in.weight",
    "sd-edges": "",
}


def test_files_that_cannot_be_used_are_listed_with_the_reason(unusable: RunningServer) -> None:
    loras = unusable.catalog.ListLoras(catalog_pb.ListLorasRequest()).loras
    nets = unusable.catalog.ListControlNets(catalog_pb.ListControlNetsRequest()).control_nets
    assert len([*loras, *nets]) == len(REASONS) + 1
    for each in (each for each in (*loras, *nets) if each.name in REASONS):
        assert REASONS[each.name] in each.unusable
        assert list(each.models) == ([] if REASONS[each.name] else ["sd"]), each.name
        assert "/" not in each.unusable, "clients need no paths of the server"


@pytest.mark.parametrize("name", [name for name, reason in REASONS.items() if reason])
def test_a_request_that_names_one_gets_the_reason(unusable: RunningServer, name: str) -> None:
    net = name.endswith("net") and name != "unet"
    named = {"controls": [control(model=name)]} if net else {"loras": [LoraSpec(name=name)]}
    failed = refused(lambda: unusable.generate(**BASE, **named))
    assert (failed.code, failed.reason) == CANNOT
    path = "parameters.controls[0].model" if net else "parameters.loras[0].name"
    assert failed.violations.keys() == {path}
    assert failed.violations[path].startswith("it cannot be used: ")
    assert REASONS[name] in failed.violations[path]


def test_the_others_are_served(unusable: RunningServer) -> None:
    assert unusable.generate(**BASE, loras=[LoraSpec(name="sd-kohya")], controls=[control()]).kinds[-1] == "completed"


def test_a_preprocessor_that_does_not_exist_keeps_the_server_from_starting(folder: Path) -> None:
    net = {"name": "x", "path": folder / "sd-edges", "preprocessor": "no"}
    with (
        pytest.raises(ModelError, match="'x'"),
        RunningServer(models=[{"name": "sd", "path": folder / "sd"}], controlnets=[net]),
    ):
        pass


def test_the_pictures_of_jobs_that_wait_are_bounded(folder: Path) -> None:
    settings = {"models": [{"name": "sd", "path": folder / "sd"}], "max_waiting_bytes": 4 * 2**20}
    big = png(np.zeros((1024, 1024, 3), np.uint8))  # small as a file, 3 MiB as pixels, more than once
    quick = {"model": "sd", "image": big, "inpaint": Inpaint(mask=png(HOLE_OF_BIG), padding_crop=4)}
    with RunningServer(**settings, limits={"max_batch_rows": 2}) as server:
        long = server.start(generate_request(**{**BASE, "num_inference_steps": 500}))
        long.read_until("step")
        waiting = server.start(edit_request(**quick), timeout=600)  # no estimate is beyond it
        waiting.read_until("queued")
        failed = refused(lambda: server.start(edit_request(**quick), timeout=600).read())
        assert failed.reason == "QUEUE_FULL"
        assert failed.retry is not None
        long.call.cancel()
        assert waiting.read().kinds[-1] == "completed"
