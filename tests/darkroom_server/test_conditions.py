"""Controls and LoRAs: how they share batches, leave no trace, and are listed."""

import io
import random
import time
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from PIL import Image

from darkroom.v1 import catalog_service_pb2 as catalog_pb
from darkroom.v1.edits_pb2 import ImageToImage, Inpaint
from darkroom.v1.parameters_pb2 import ControlSpec, LoraSpec
from darkroom_plugins.builtin.families.sd import StableDiffusion
from darkroom_plugins.manager import load_plugins
from darkroom_plugins.sample import Evaluation
from tests.support import RunningServer, alike, alive, edit_request, generate_request, png, struct

BASE: dict[str, Any] = {"model": "sd", "prompt": "a red circle", "num_inference_steps": 6, "seed": 5}
RANDOM = np.random.default_rng(1)
MAP = png(RANDOM.integers(0, 2, (32, 32, 3), np.uint8) * 255)
PICTURE = png(RANDOM.integers(0, 256, (32, 32, 3), np.uint8))
HOLE = np.zeros((32, 32), np.uint8)
HOLE[4:20, 6:24] = 255


def lora(name: str, weight: float | None = None) -> LoraSpec:
    return LoraSpec(name=f"sd-{name}", weight=weight)


def control(**fields: Any) -> ControlSpec:
    return ControlSpec(**{"model": "sd-edges", "image": MAP, **fields})


# ----------------------------------------------------------------------------------------------------- sharing batches

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "img2img": {"image": PICTURE, "image_to_image": ImageToImage(strength=0.7)},
    "inpaint": {"image": PICTURE, "inpaint": Inpaint(mask=png(HOLE))},
    "controlnet": {"controls": [control()]},
    "lora a": {"loras": [lora("unet-a")]},
    "lora b": {"loras": [lora("unet-b", 0.6)]},
    "both": {"loras": [lora("unet-a", 0.5), lora("unet-b", -1)], "controls": [control(scale=0.7, guess_mode=True)]},
    "euler-ancestral": {"scheduler": "euler-ancestral", "loras": [lora("text")]},
}


def request(kind: str) -> Any:
    make = edit_request if "image" in KINDS[kind] else generate_request
    return make(**{**BASE, "num_inference_steps": 10, **KINDS[kind]})


def test_eight_kinds_share_batches_and_each_equals_its_solo_picture(edit_server: RunningServer) -> None:
    alone = {kind: edit_server.start(request(kind)).read().pixels for kind in KINDS}
    chance, streams = random.Random(0), {}
    for kind in KINDS:
        streams[kind] = edit_server.start(request(kind))
        time.sleep(chance.uniform(0, 0.02))
    for kind, stream in streams.items():
        stream.read()
        assert np.abs(stream.pixels - alone[kind]).max() <= 1, kind
        assert max(step.batch_rows for step in stream.of("step")) > 2, f"{kind} shared no batch"
    for kind in set(KINDS) - {"plain"}:
        assert np.abs(alone[kind] - alone["plain"]).max() > 8, f"{kind} has no effect"


def test_all_images_of_a_job_have_their_conditions(edit_server: RunningServer) -> None:
    conditions = {"controls": [control()], "loras": [lora("unet-a")]}
    both = edit_server.generate(**{**BASE, **conditions, "num_images": 2})
    second = edit_server.generate(**{**BASE, **conditions, "seed": 6})
    assert np.abs(both.pixels[1] - second.pixels[0]).max() <= 1


def test_what_is_the_same_at_each_evaluation_is_made_once(
    edit_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[weakref.ref[torch.Tensor]] = []
    maps: list[int] = []
    predict, embed = StableDiffusion.predict, ControlNetConditioningEmbedding.forward

    def predicting(self: StableDiffusion, evaluation: Evaluation) -> torch.Tensor:
        prompts.append(weakref.ref(evaluation.prompts))
        return predict(self, evaluation)

    def embedding(self: ControlNetConditioningEmbedding, conditioning: torch.Tensor) -> torch.Tensor:
        maps.append(len(conditioning))
        return embed(self, conditioning)

    monkeypatch.setattr(StableDiffusion, "predict", predicting)
    monkeypatch.setattr(ControlNetConditioningEmbedding, "forward", embedding)
    edit_server.generate(**BASE, controls=[control()])
    assert len(prompts) >= BASE["num_inference_steps"]
    # A tensor has but one reference of this kind.
    assert len(set(map(id, prompts))) == 1, "the prompts were put together anew"
    assert maps == [1]
    edit_server.generate(**BASE)
    assert prompts[0]() is None, "it outlives its job"


# ----------------------------------------------------------------------------------------------------- leaving no trace


def test_a_lora_leaves_no_trace(edit_server: RunningServer) -> None:
    model = edit_server.app.catalog.models["sd"].family
    before = edit_server.generate(**BASE, deterministic=True)
    hooks = [m for part in model.components.values() for m in part.modules() if m._forward_hooks]
    weights = {name: p.clone() for name, p in model.unet.state_dict().items()}
    edit_server.generate(**BASE, loras=[lora("unet-a"), lora("text")], controls=[control()])
    after = edit_server.generate(**BASE, deterministic=True)
    assert before.files() == after.files()
    assert {name for name, p in model.unet.state_dict().items() if not torch.equal(p, weights[name])} == set()
    assert [m for part in model.components.values() for m in part.modules() if m._forward_hooks] == hooks


def test_a_job_that_is_cancelled_leaves_no_lora(edit_server: RunningServer) -> None:
    model = edit_server.app.catalog.models["sd"].family
    for _ in range(5):
        stream = edit_server.start(generate_request(**{**BASE, "num_inference_steps": 200}, loras=[lora("unet-a")]))
        stream.read_until("step")
        stream.call.cancel()
    patient = edit_server.generate(**BASE)
    assert patient.kinds[-1] == "completed"
    assert not any(m._forward_hooks for m in model.unet.modules())


@pytest.mark.parametrize(
    "conditions",
    [{"loras": [lora("unet-a", 0)]}, {"controls": [control(scale=0)]}, {"loras": [lora("text", 0), lora("unet-b", 0)]}],
    ids=["LoRA weight 0", "control scale 0", "two LoRAs at 0"],
)
def test_nothing_is_nothing(edit_server: RunningServer, conditions: dict[str, Any]) -> None:
    plain = edit_server.generate(**BASE, deterministic=True)
    with_nothing = edit_server.generate(**BASE, deterministic=True, **conditions)
    assert np.array_equal(plain.pixels, with_nothing.pixels)


def test_the_same_prompt_is_encoded_anew_for_another_lora(edit_server: RunningServer) -> None:
    plain, first, second = (
        edit_server.generate(**BASE, loras=loras).pixels for loras in ([], [lora("text", 1)], [lora("text", -1)])
    )
    again = edit_server.generate(**BASE).pixels
    assert alike(plain, again)
    assert np.abs(first - second).max() > 8


def test_every_task_uses_one_copy_of_the_weights(edit_server: RunningServer) -> None:
    kind = type(edit_server.app.catalog.models["sd"].family.components["unet"])

    before = alive(kind)
    for name in KINDS:
        edit_server.start(request(name)).read()
    assert alive(kind) == before


# -------------------------------------------------------------------------------------------------- maps and their echo


def test_the_map_that_was_used_is_echoed(edit_server: RunningServer) -> None:
    square = np.zeros((64, 64, 3), np.uint8)
    square[16:48, 16:48] = 255
    stream = edit_server.generate(
        **BASE,
        controls=[
            control(),
            control(image=png(square), preprocessor="canny", echo_map=True),
            control(model="sd-depth", echo_map=True),
        ],
    )
    assert stream.kinds[:3] == ["accepted", "control_image", "control_image"]
    made, given = stream.of("control_image")
    assert (made.control_index, made.preprocessor, made.width, made.height) == (1, "canny", 32, 32)
    assert (given.control_index, given.preprocessor) == (2, "")
    edges = np.asarray(Image.open(io.BytesIO(made.image_bytes)).convert("L"))
    assert edges[16, 7:9].max() == 255
    assert edges[16, 16] == 0
    echoed = np.asarray(Image.open(io.BytesIO(given.image_bytes)))
    assert np.array_equal(echoed, np.asarray(Image.open(io.BytesIO(MAP))))


def test_a_preprocessor_and_its_map_give_the_same_picture(edit_server: RunningServer) -> None:
    options = struct({"low_threshold": 20, "high_threshold": 60})
    raw = control(image=PICTURE, preprocessor="canny", preprocessor_options=options, echo_map=True)
    first = edit_server.generate(**BASE, controls=[raw])
    second = edit_server.generate(**BASE, controls=[control(image=first.of("control_image")[0].image_bytes)])
    assert alike(first.pixels, second.pixels)
    resolved = first.of("accepted")[0].parameters.controls[0]
    assert (resolved.image, resolved.preprocessor) == (b"", "canny")
    assert resolved.preprocessor_options["low_threshold"] == 20


def test_a_resolved_request_makes_the_same_picture(edit_server: RunningServer) -> None:
    stream = edit_server.generate(**BASE, loras=[lora("unet-a", 0.5)], controls=[control(start=0.1, end=0.8)])
    resolved = stream.of("accepted")[0].parameters
    resolved.controls[0].image = MAP
    request = generate_request()
    request.parameters.CopyFrom(resolved)
    assert alike(edit_server.start(request).read().pixels, stream.pixels)


# ------------------------------------------------------------------------------------------------------------ listing


def test_what_is_there_is_listed(edit_server: RunningServer) -> None:
    loras = edit_server.catalog.ListLoras(catalog_pb.ListLorasRequest()).loras
    assert [each.name for each in loras] == sorted(each.name for each in loras)
    texts = {"sd": ["unet", "text_encoder"], "sdxl": ["unet", "text_encoder", "text_encoder_2"]}
    for each in loras:
        family, _, name = each.name.partition("-")
        assert each.family == family
        assert list(each.models) == [family, f"{family}-9"]
        assert list(each.components) == (["unet"] if name.startswith("unet") else texts[family])
        assert each.weight_bytes > 1000
    assert len(loras) == 7
    nets = edit_server.catalog.ListControlNets(catalog_pb.ListControlNetsRequest()).control_nets
    assert [each.name for each in nets] == ["sd-depth", "sd-edges", "sdxl-depth", "sdxl-edges"]
    entries = edit_server.catalog.ListPreprocessors(catalog_pb.ListPreprocessorsRequest()).preprocessors
    assert [each.name for each in entries] == sorted(load_plugins().preprocessors)
    canny = next(each for each in entries if each.name == "canny")
    assert "low_threshold" in canny.parameters_schema["properties"]
    assert canny.plugin == "preprocessors"
