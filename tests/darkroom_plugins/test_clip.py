"""Prompts become the embeddings that diffusers' StableDiffusionPipeline makes of them; long ones go on in chunks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from darkroom_plugins.builtin.conditioners.prompt_weighting import PromptWeighting
from darkroom_plugins.builtin.conditioners.textual_inversion import TextualInversion
from darkroom_plugins.builtin.families.clip import ClipEncoder, Embedding, Token, emphasised
from darkroom_plugins.builtin.families.sd import StableDiffusion
from darkroom_plugins.sample import PromptPiece
from tests.prompting import a_request, embedded, largest, literal, reader
from tests.tiny import load_family

BOUND = 1e-6
WORDS = [chr(ord("a") + n % 26) for n in range(200)]  # each of one token


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> StableDiffusion:
    return load_family(StableDiffusion, tiny_model)


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> StableDiffusionPipeline:
    loaded = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    # diffusers 0.42 looks for the layers to skip where transformers had them before version 5.
    vars(loaded.text_encoder)["text_model"] = loaded.text_encoder
    return loaded


@torch.no_grad()
def encoded(pipeline: Any, prompt: str, **arguments: Any) -> list[torch.Tensor]:
    """What the pipeline makes of it, unconditional first."""
    guided = arguments.pop("guided", True)
    conditional, unconditional = pipeline.encode_prompt(prompt, "cpu", 1, guided, **arguments)
    return [unconditional, conditional] if guided else [conditional]


# The request, the pipeline's arguments, and the row whose embedding depends on it.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "prompt": ({"prompt": "a blue square, <|endoftext|> é"}, {"prompt": "a blue square, <|endoftext|> é"}, 1),
    "negative prompt": ({"negative_prompt": "blurry"}, {"negative_prompt": "blurry"}, 0),
    "clip skip 1": ({"clip_skip": 1}, {"clip_skip": 1}, 1),
    "clip skip 2": ({"clip_skip": 2}, {"clip_skip": 2}, 1),
    "too long": ({"prompt": " ".join(WORDS)}, {"prompt": " ".join(WORDS)}, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_diffusers(name: str, model: StableDiffusion, pipeline: StableDiffusionPipeline) -> None:
    asked, arguments, row = CASES[name]
    plain = {"prompt": a_request().prompt}
    theirs = encoded(pipeline, **{**plain, **arguments})
    assert largest(theirs[row], encoded(pipeline, **plain)[row]) > 0.1, "the case cannot fail"
    ours = embedded(model, a_request(**asked))
    assert [largest(a.hidden, b) <= BOUND for a, b in zip(ours, theirs, strict=True)] == [True, True]
    assert all(each.pooled is None for each in ours)


def test_without_guidance_there_is_one_row(model: StableDiffusion, pipeline: StableDiffusionPipeline) -> None:
    (ours,) = embedded(model, a_request(guidance_scale=1.0))
    (theirs,) = encoded(pipeline, a_request().prompt, guided=False)
    assert largest(ours.hidden, theirs) <= BOUND


def test_masked_encoders_see_no_padding(tiny_model: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    before = encoded(pipeline, "a red circle")
    pipeline.text_encoder.config.use_attention_mask = True
    theirs = encoded(pipeline, "a red circle")
    assert largest(before[1], theirs[1]) > 0.1, "the case cannot fail"
    model = load_family(StableDiffusion, tiny_model)
    model.components["text_encoder"].config.use_attention_mask = True
    ours = embedded(model, a_request())
    assert max(largest(a.hidden, b) for a, b in zip(ours, theirs, strict=True)) <= BOUND


def test_what_is_cut_off_is_told(model: StableDiffusion) -> None:
    negative, positive = embedded(model, a_request(prompt=" ".join(WORDS[:80])))
    rest = " ".join(WORDS[75:80])
    expected = f"the text encoder takes 75 tokens; of a prompt of 80 this was cut off: {rest!r}"
    assert (negative.warnings, positive.warnings) == ((), (expected,))
    assert not embedded(model, a_request(prompt=" ".join(WORDS[:75])))[1].warnings


def test_keys_name_what_embeddings_depend_on(model: StableDiffusion) -> None:
    def keys(**changes: Any) -> tuple[Any, ...]:
        return model.prompt_keys(a_request(**changes), literal)

    assert keys() == keys(negative_prompt="")
    assert {*map(hash, keys())} == {*map(hash, keys(seed=5))}
    assert len({*keys(), *keys(prompt="a"), *keys(clip_skip=1), *keys(negative_prompt="b")}) == 5
    assert {key.length for key in keys()} == {77}


def test_tokenizers_are_for_the_planner_alone(tiny_model: Path) -> None:
    model = load_family(StableDiffusion, tiny_model)
    keys = model.prompt_keys(a_request(), literal)
    before = [model.encode_prompts([key])[0].hidden for key in keys]
    for encoder in model.texts.encoders:
        del encoder.tokenizer
    with pytest.raises(AttributeError):  # the case can fail
        model.prompt_keys(a_request(), literal)
    for key, hidden in zip(keys, before, strict=True):
        assert torch.equal(model.encode_prompts([key])[0].hidden, hidden)


def test_several_at_once_are_as_each_alone(model: StableDiffusion) -> None:
    asked = [a_request(), a_request(prompt="a (b:1.4)"), a_request(prompt=" ".join(WORDS)), a_request(clip_skip=1)]
    keys = [key for each in asked for key in model.prompt_keys(replace(each, prompt_syntax="weighted"), literal)]
    with torch.no_grad():
        together = model.encode_prompts(keys)
        alone = [model.encode_prompts([key])[0] for key in keys]
    assert [each.hidden.shape for each in together] == [each.hidden.shape for each in alone]
    assert max(largest(a.hidden, b.hidden) for a, b in zip(together, alone, strict=True)) <= BOUND
    assert largest(alone[1].hidden, alone[-1].hidden) > 0.1, "the case cannot fail"


def test_long_prompts_go_on_in_chunks(model: StableDiffusion, pipeline: StableDiffusionPipeline) -> None:
    request = a_request(prompt=" ".join(WORDS), negative_prompt="blurry", prompt_syntax="weighted")
    keys = model.prompt_keys(request, literal)
    assert [key.length for key in keys] == [3 * 77] * 2
    parts = [" ".join(WORDS[start : start + 75]) for start in (0, 75, 150)]
    theirs = [
        torch.cat([encoded(pipeline, part, guided=False)[0] for part in texts], dim=1)
        for texts in (["blurry", "", ""], parts)
    ]
    ours = [each.hidden for each in embedded(model, request)]
    assert max(largest(a, b) for a, b in zip(ours, theirs, strict=True)) <= BOUND
    assert largest(ours[1][:, 77:], theirs[1][:, :-77]) > 0.1, "the case cannot fail"


@pytest.mark.parametrize("count", [0, 1, 74, 75])
def test_weighted_without_weights_is_plain(count: int, model: StableDiffusion) -> None:
    text = " ".join(WORDS[:count])
    plain = embedded(model, a_request(prompt=text, clip_skip=1))
    request = a_request(prompt=text, clip_skip=1, prompt_syntax="weighted")
    weighted = embedded(model, request, reader(request, PromptWeighting()))
    assert [torch.equal(a.hidden, b.hidden) for a, b in zip(plain, weighted, strict=True)] == [True, True]


def test_break_begins_a_chunk(model: StableDiffusion, pipeline: StableDiffusionPipeline) -> None:
    request = a_request(prompt="a cat BREAK a (dog:1.5) BREAK", guidance_scale=1.0, prompt_syntax="weighted")
    (ours,) = embedded(model, request, reader(request, PromptWeighting()))
    assert ours.hidden.shape[1] == 2 * 77
    assert largest(ours.hidden[:, :77], encoded(pipeline, "a cat", guided=False)[0]) <= BOUND
    request = a_request(prompt="a (dog:1.5)", guidance_scale=1.0, prompt_syntax="weighted")
    (alone,) = embedded(model, request, reader(request, PromptWeighting()))
    assert largest(ours.hidden[:, 77:], alone.hidden) <= BOUND


def test_weights_multiply_and_keep_the_mean(model: StableDiffusion, pipeline: StableDiffusionPipeline) -> None:
    request = a_request(prompt="x (y z:1.5) w", guidance_scale=1.0, prompt_syntax="weighted")
    (ours,) = embedded(model, request, reader(request, PromptWeighting()))
    (plain,) = encoded(pipeline, "x y z w", guided=False)
    expected = plain.clone()
    expected[:, 2:4] *= 1.5  # after BOS and x
    expected *= plain.mean() / expected.mean()
    assert largest(plain, expected) > 0.1, "the case cannot fail"
    assert largest(ours.hidden, expected) <= 1e-5
    assert float(ours.hidden.mean()) == pytest.approx(float(plain.mean()), rel=1e-5)


def test_chunks_keep_their_means_one_by_one() -> None:
    hidden = torch.rand(2, 4, 3, generator=torch.Generator().manual_seed(0))
    result = emphasised(hidden, [(Token(0), Token(1), Token(2)), (Token(0), Token(1, 3.0), Token(2))])
    assert torch.equal(result[0], hidden[0])
    assert not torch.allclose(result[1], hidden[1])
    assert torch.allclose(result.mean((1, 2)), hidden.mean((1, 2)))


def test_chunks_hold_all_tokens_in_order(model: StableDiffusion) -> None:
    encoder: ClipEncoder = model.texts.encoders[0]
    for count in (0, 1, 75, 76, 150, 151):
        pieces = [PromptPiece(word, weight=1 + n % 3) for n, word in enumerate(WORDS[:count])]
        chunks = encoder.chunked(pieces)
        assert len(chunks) == max(1, -(-count // 75))
        assert all(chunk[0].id == 512 and chunk[-1].id == 513 and len(chunk) <= 77 for chunk in chunks)
        assert [token.weight for chunk in chunks for token in chunk[1:-1]] == [piece.weight for piece in pieces]


def wrapped(model: StableDiffusion, prompt: str) -> list[str]:
    """The text of each chunk of a weighted prompt, read with textual inversion; `<name>` has three vectors."""
    request = a_request(prompt=prompt, prompt_syntax="weighted")
    learned = Embedding((torch.zeros(3, 32),))
    read = reader(request, TextualInversion(), PromptWeighting(), name=learned)
    encoder: ClipEncoder = model.texts.encoders[0]
    return [
        encoder.tokenizer.decode([token.id for token in chunk[1:-1] if not token.embedding])
        + "<>" * any(token.embedding for token in chunk)
        for chunk in encoder.chunked(read(prompt))
    ]


def words(count: int) -> str:
    return " ".join(["x"] * count)


# The prompt; the texts of its chunks. In the web UI's words: comma_padding_backtrack is 20 of 75 tokens.
WRAPPED = {
    "moved": (f"{words(72)}, o r a n g e", [f"{words(72)},", "o r a n g e"]),
    "with its weight": (f"{words(72)}, (o r a n g e:1.3)", [f"{words(72)},", "o r a n g e"]),
    "nineteen": (f"{words(55)}, {words(20)}", [f"{words(55)},", words(20)]),
    "twenty stay": (f"{words(54)}, {words(21)}", [f"{words(54)}, {words(20)}", "x"]),
    "no comma": (words(76), [words(75), "x"]),
    "a comma at the end": (f"{words(74)}, y", [f"{words(74)},", "y"]),
    "a comma beyond": (f"{words(70)}, y y y y, z", [f"{words(70)}, y y y y", ", z"]),
    "the last of two": (f"{words(70)}, y, o k o k", [f"{words(70)}, y,", "o k o k"]),
    "not of the chunk before": (f"{words(74)}, BREAK {words(76)}", [f"{words(74)},", words(75), "x"]),
    "an embedding that moves": (f"{words(70)}, y <name> z", [f"{words(70)},", "y z<>"]),
    "an embedding that does not fit": (f"{words(70)}, y y <name> z", [f"{words(70)}, y y", "z<>"]),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_what_follows_a_comma_stays_together(name: str, model: StableDiffusion) -> None:
    prompt, expected = WRAPPED[name]
    assert [" ".join(text.split()) for text in wrapped(model, prompt)] == [
        text.replace(",", " ,").replace("  ", " ").strip() for text in expected
    ]


def test_what_is_cut_off_of_an_embedding_is_told_by_its_name(model: StableDiffusion) -> None:
    for count in (73, 74, 75):
        prompt = f"{words(count)} <name> y"
        request = a_request(prompt=prompt, negative_prompt="")
        read = reader(request, TextualInversion(), name=Embedding((torch.zeros(3, 32),)))
        (warning,) = model.prompt_keys(request, read)[1].warnings
        assert warning.endswith(f"of a prompt of {count + 4} this was cut off: '<name> y'")


def test_what_is_cut_off_begins_with_a_whole_character(model: StableDiffusion) -> None:
    request = a_request(prompt="\N{BLUE HEART}" * 20, negative_prompt="")  # four tokens each
    (warning,) = model.prompt_keys(request, reader(request))[1].warnings
    assert warning.endswith("of a prompt of 80 this was cut off: '\N{BLUE HEART}'")
