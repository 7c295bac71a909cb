"""Textual inversion over the wire: a word of the operator's, in one request's prompt and nobody else's."""

from collections.abc import Iterator
from pathlib import Path

import diffusers
import grpc
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from darkroom.v1.parameters_pb2 import PROMPT_SYNTAX_PLAIN, PROMPT_SYNTAX_WEIGHTED
from tests.support import RunningServer, generate_request, refused

BASE = {"prompt": "a <cat-toy> on blue", "num_inference_steps": 6, "guidance_scale": 5.0, "seed": 7}


@pytest.fixture(scope="module")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three vectors for one word, as diffusers' trainer writes them."""
    file = tmp_path_factory.mktemp("embeddings") / "cat.safetensors"
    save_file({"<cat-toy>": torch.randn(3, 32, generator=torch.Generator().manual_seed(1)) * 3}, file)
    return file


@pytest.fixture(scope="module")
def toy_server(tiny_model: Path, embedding: Path) -> Iterator[RunningServer]:
    pair = {"clip_l": torch.ones(1, 32), "clip_g": torch.ones(1, 48)}
    save_file(pair, embedding.with_name("xl.safetensors"))
    embedding.with_name("torn.safetensors").write_text("hello")
    others = [{"name": name, "path": embedding.with_name(f"{name}.safetensors")} for name in ("xl", "torn")]
    toys = [{"name": "cat-toy", "path": embedding}, *others]
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], embeddings=toys) as running:
        yield running


def test_a_word_means_what_its_file_says(toy_server: RunningServer, tiny_model: Path, embedding: Path) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    arguments = {name: value for name, value in BASE.items() if name != "seed"}

    def oracle() -> np.ndarray:
        generator = torch.Generator().manual_seed(7)
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        return np.asarray(pipe(**arguments, generator=[generator]).images[0], dtype=int)

    literal = oracle()
    pipe.load_textual_inversion(embedding)
    expected = oracle()
    assert (np.abs(expected - literal).max(-1) > 8).mean() >= 0.1, "the case cannot fail"
    stranger = toy_server.start(generate_request(prompt="a cat toy", num_inference_steps=60))
    stranger.read_until("step")
    ours = toy_server.generate(**BASE)
    stranger.call.cancel()
    assert max(step.batch_rows for step in ours.of("step")) > 2
    assert np.abs(ours.pixels[0] - expected).max() <= 1


def test_other_words_in_angle_brackets_are_text(toy_server: RunningServer) -> None:
    one, other = (toy_server.generate(**{**BASE, "prompt": f"a <{name}>"}).pixels for name in ("cat-toy", "dog-toy"))
    assert np.abs(one - other).max() > 8


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("xl", "with the model tiny it cannot be used: it was made for text encoders of width 32 and 48, not 32"),
        ("torn", "it cannot be used: torn.safetensors is not a whole safetensors file"),
    ],
)
def test_an_embedding_that_does_not_fit_is_no_text(
    toy_server: RunningServer, field: str, name: str, problem: str
) -> None:
    for syntax in (PROMPT_SYNTAX_PLAIN, PROMPT_SYNTAX_WEIGHTED):
        named = {**BASE, field: f"a (<{name}>:1.2)", "prompt_syntax": syntax}
        refusal = refused(lambda named=named: toy_server.generate(**named))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "UNSUPPORTED_COMBINATION")
        assert refusal.paths == {f"parameters.{field}"}
        assert f"has the embedding <{name}>: {problem}" in refusal.violations[f"parameters.{field}"]
