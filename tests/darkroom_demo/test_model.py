from typing import Any

import pytest
import torch

from darkroom_demo import MODEL_PATH

pytest.importorskip("diffusers")

MIB = 2**20


@pytest.fixture(scope="module")
def pipeline() -> Any:
    from diffusers import StableDiffusionPipeline

    loaded = StableDiffusionPipeline.from_pretrained(MODEL_PATH, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_the_folder_is_small() -> None:
    assert sum(file.stat().st_size for file in MODEL_PATH.rglob("*") if file.is_file()) <= 12 * MIB


def test_it_loads_as_full_precision(pipeline: Any) -> None:
    for component in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert component.dtype == torch.float32
    assert pipeline.safety_checker is None
    assert pipeline.scheduler.config.prediction_type == "epsilon"


def test_it_loads_as_half_precision() -> None:
    from diffusers import StableDiffusionPipeline

    loaded = StableDiffusionPipeline.from_pretrained(MODEL_PATH, dtype=torch.float16, local_files_only=True)
    for component in (loaded.unet, loaded.vae, loaded.text_encoder):
        assert component.dtype == torch.float16


@pytest.mark.parametrize("text", ["", "😀 a red circle", "赤い丸", "naïve\n\tcafé", "\x00", "circle " * 200])
def test_any_text_is_tokenized(pipeline: Any, text: str) -> None:
    tokenizer = pipeline.tokenizer
    assert tokenizer.model_max_length == 77
    ids = tokenizer(text, padding="max_length", truncation=True).input_ids
    assert len(ids) == 77
    assert max(ids) < pipeline.text_encoder.config.vocab_size
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id in ids


def test_its_own_words_are_one_token_each(pipeline: Any) -> None:
    text = "A large yellow star on a black background"
    assert len(pipeline.tokenizer(text).input_ids) == len(text.split()) + 2


def test_a_picture_shows_its_prompt(pipeline: Any) -> None:
    from darkroom_demo.measure import measure

    generator = torch.Generator().manual_seed(0)
    prompt = "a red circle on a blue background"
    seen = measure(pipeline(prompt, num_inference_steps=12, guidance_scale=3.0, generator=generator).images[0])
    assert seen.background == "blue"
    assert [(blob.colour, blob.shape) for blob in seen.blobs] == [("red", "circle")]
