"""Learned words have the effect that diffusers' load_textual_inversion gives them, on their own request alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file

from darkroom_plugins.builtin.conditioners.prompt_weighting import PromptWeighting
from darkroom_plugins.builtin.conditioners.textual_inversion import TextualInversion
from darkroom_plugins.builtin.families.clip import Embedding
from darkroom_plugins.builtin.families.sd import StableDiffusion
from darkroom_plugins.builtin.families.sdxl import StableDiffusionXL
from darkroom_plugins.request import Request
from tests.prompting import a_request, embedded, largest, literal, reader
from tests.tiny import load_family
from tests.tiny_sdxl import save_sdxl

BOUND = 1e-6
CPU = torch.device("cpu")
PLUGIN = TextualInversion()


def vectors(count: int, width: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def saved(file: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors, file)
    return file


@pytest.fixture(scope="module")
def sd(tiny_model: Path) -> StableDiffusion:
    return load_family(StableDiffusion, tiny_model)


@pytest.fixture(scope="module")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sdxl(tmp_path_factory.mktemp("inverted") / "sdxl")


@pytest.fixture(scope="module")
def sdxl(sdxl_folder: Path) -> StableDiffusionXL:
    return load_family(StableDiffusionXL, sdxl_folder)


def read_by(request: Request, *conditioners: Any, **embeddings: Embedding) -> Any:
    return reader(request, *(conditioners or [PLUGIN]), **embeddings)


PROMPTS = {
    "one word": "a photo of a <cat> on a table",
    "alone": "<cat>",
    "twice, without spaces": "a<cat>, <cat>b",
    "at the cut": "x " * 73 + "<cat> beyond",
}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", PROMPTS)
def test_equals_diffusers(name: str, count: int, sd: StableDiffusion, tiny_model: Path, tmp_path: Path) -> None:
    file = saved(tmp_path / "cat.safetensors", **{"<learned-as>": vectors(count)})
    request = a_request(prompt=PROMPTS[name], negative_prompt="no <cat>")
    ours = embedded(sd, request, read_by(request, cat=PLUGIN.load_asset(file, sd)))

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    pipeline.load_textual_inversion(str(file.parent), weight_name=file.name, token="<cat>")
    with torch.no_grad():
        conditional, unconditional = pipeline.encode_prompt(
            request.prompt, CPU, 1, True, negative_prompt=request.negative_prompt
        )
    assert largest(embedded(sd, request)[1].hidden, conditional) > 0.1, "the case cannot fail"
    assert largest(ours[0].hidden, unconditional) <= BOUND
    assert largest(ours[1].hidden, conditional) <= BOUND
    assert bool(ours[1].warnings) == (name == "at the cut")


@pytest.mark.parametrize("count", [1, 3])
def test_equals_diffusers_with_two_text_encoders(
    count: int, sdxl: StableDiffusionXL, sdxl_folder: Path, tmp_path: Path
) -> None:
    tensors = {"clip_l": vectors(count), "clip_g": vectors(count, 48, seed=1)}
    request = a_request(prompt="a <cat> on a table", prompt_2="oil, <cat>", negative_prompt="no <cat>")
    learned = PLUGIN.load_asset(saved(tmp_path / "cat.safetensors", **tensors), sdxl)
    ours = embedded(sdxl, request, read_by(request, cat=learned))

    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl_folder, add_watermarker=False)
    encoders = [(pipeline.text_encoder, pipeline.tokenizer), (pipeline.text_encoder_2, pipeline.tokenizer_2)]
    for tensor, (encoder, tokenizer) in zip(tensors.values(), encoders, strict=True):
        pipeline.load_textual_inversion({"<cat>": tensor}, text_encoder=encoder, tokenizer=tokenizer)
    texts = {name: getattr(request, name) for name in ("prompt", "prompt_2", "negative_prompt")}
    with torch.no_grad():
        conditional, unconditional, pooled, negative_pooled = pipeline.encode_prompt(**texts, device=CPU)
    plain = embedded(sdxl, request)
    for row, hidden, its_pooled in ((0, unconditional, negative_pooled), (1, conditional, pooled)):
        assert largest(plain[row].hidden, hidden) > 0.1, "the case cannot fail"
        assert largest(plain[row].pooled, its_pooled) > 0.1, "the case cannot fail"
        assert largest(ours[row].hidden, hidden) <= BOUND
        assert largest(ours[row].pooled, its_pooled) <= BOUND


def test_the_end_is_found_by_old_models(sdxl: StableDiffusionXL) -> None:
    """Those with an eos_token_id of 2, as SDXL's own, pool where the greatest id is, which must be no vector's."""
    request = a_request(prompt="a <cat>")
    read = read_by(request, cat=Embedding((vectors(2), vectors(2, 48))))
    expected = embedded(sdxl, request, read)[1]
    network = sdxl.components["text_encoder_2"].text_model
    before, network.eos_token_id = network.eos_token_id, 2
    try:
        assert torch.equal(embedded(sdxl, request, read)[1].pooled, expected.pooled)
    finally:
        network.eos_token_id = before


def test_no_request_touches_another(sd: StableDiffusion) -> None:
    table = sd.components["text_encoder"].get_input_embeddings()
    before, plain = table.weight.clone(), embedded(sd, a_request(prompt="a <cat>"))
    request = a_request(prompt="a <cat>")
    one, other = (
        embedded(sd, request, read_by(request, cat=Embedding((vectors(1, seed=seed),))))[1].hidden for seed in (1, 2)
    )
    assert largest(one, other) > 0.1
    assert torch.equal(table.weight, before)
    assert not table._forward_hooks
    assert torch.equal(embedded(sd, a_request(prompt="a <cat>"))[1].hidden, plain[1].hidden)


def test_keys_tell_embeddings_apart(sd: StableDiffusion) -> None:
    request = a_request(prompt="a <cat>", guidance_scale=1.0)
    one, other = Embedding((vectors(1),)), Embedding((vectors(1),))
    keys = {sd.prompt_keys(request, read_by(request, cat=each)) for each in (one, other, one)}
    assert len({*keys, sd.prompt_keys(request, literal)}) == 3


def test_words_have_weights(sd: StableDiffusion) -> None:
    request = a_request(prompt="a (<cat> b:1.5)", guidance_scale=1.0, prompt_syntax="weighted")
    learned = Embedding((vectors(2),))
    (ours,) = embedded(sd, request, read_by(request, PromptWeighting(), PLUGIN, cat=learned))
    plain = a_request(prompt="a <cat> b", guidance_scale=1.0)
    (expected,) = (each.hidden.clone() for each in embedded(sd, plain, read_by(plain, cat=learned)))
    mean = expected.mean()
    expected[:, 2:5] *= 1.5  # two vectors and b
    assert largest(ours.hidden, expected * (mean / expected.mean())) <= 1e-5


def test_words_are_not_torn_apart(sd: StableDiffusion) -> None:
    request = a_request(prompt="x " * 74 + "<cat> y", guidance_scale=1.0, prompt_syntax="weighted")
    (key,) = sd.prompt_keys(request, read_by(request, cat=Embedding((vectors(3),))))
    assert [len(chunk) - 2 for chunk in key.texts[0]] == [74, 4]
    (key,) = sd.prompt_keys(request, read_by(request, cat=Embedding((vectors(80),))))
    assert [len(chunk) - 2 for chunk in key.texts[0]] == [74, 75, 6]


def test_only_what_is_listed_is_a_word() -> None:
    learned = Embedding((vectors(1),))
    pieces = reader(a_request(), PLUGIN, **{"a/b-1.0": learned})("<x> <a/b-1.0>, <a/B-1.0> a<b")
    assert [(piece.text, piece.embedding) for piece in pieces] == [
        ("<x> ", None),
        ("<a/b-1.0>", learned),
        (", <a/B-1.0> a<b", None),
    ]


@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "prompt_2", "negative_prompt_2"])
def test_is_wanted_where_there_may_be_words(field: str) -> None:
    assert PLUGIN.wants(a_request(**{field: "a <cat>"}), None)
    assert not PLUGIN.wants(a_request(**{field: "a < b"}), None)


FORMATS: dict[str, dict[str, torch.Tensor]] = {
    "diffusers": {"<cat>": vectors(2)},
    "diffusers, one vector": {"<cat>": vectors(1)[0]},
    "web UI": {"emb_params": vectors(2)},
    "web UI, more": {"emb_params": vectors(2), "steps": torch.ones(1)},
    "SDXL": {"clip_g": vectors(2, 48), "clip_l": vectors(2)},
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name: str, sd: StableDiffusion, sdxl: StableDiffusionXL, tmp_path: Path) -> None:
    tensors = FORMATS[name]
    file = saved(tmp_path / "file.safetensors", **tensors)
    both = name == "SDXL"
    info = PLUGIN.describe_asset(file)
    assert info.components == (("text_encoder", "text_encoder_2") if both else ("text_encoder",))
    assert info.weight_bytes == file.stat().st_size
    assert PLUGIN.incompatibility(file, sdxl if both else sd) is None
    expected = [tensors[part] for part in ("clip_l", "clip_g")] if both else [next(iter(tensors.values()))]
    loaded = PLUGIN.load_asset(file, sdxl if both else sd).vectors
    assert all(torch.equal(a, b.reshape(a.shape)) for a, b in zip(loaded, expected, strict=True))
    assert {tensor.dim() for tensor in loaded} == {2}
    why = PLUGIN.incompatibility(file, sd if both else sdxl)
    assert why == (
        "it was made for text encoders of width 32 and 48, not 32"
        if both
        else "it was made for text encoders of width 32, not 32 and 48"
    )


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"a": vectors(1), "b": vectors(1)},
        {"clip_g": vectors(1), "other": vectors(1)},
        {"a": torch.zeros(())},
        {"a": torch.zeros(2, 3, 4)},
        {"a": torch.zeros(0, 32)},
    ],
)
def test_other_files_are_refused(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tensors"):
        PLUGIN.describe_asset(saved(tmp_path / "file.safetensors", **tensors))
