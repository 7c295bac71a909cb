"""SDXL models are what diffusers' StableDiffusionXLPipeline runs: prompts, sizes, VAE, and what is refused."""

import dataclasses
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

from darkroom_plugins import UnsupportedCombination
from darkroom_plugins.builtin.families.sd import StableDiffusion
from darkroom_plugins.builtin.families.sdxl import StableDiffusionXL
from darkroom_plugins.files import ModelFiles
from darkroom_plugins.request import SizeConditioning
from darkroom_plugins.sample import Evaluation, Row
from tests.prompting import a_request, embedded, largest
from tests.tiny import load_family, save_sd
from tests.tiny_sdxl import save_sdxl

BOUND = 1e-6
CPU = torch.device("cpu")
STATISTICS = {"latents_mean": [0.5, -1.0, 0.0, 2.0], "latents_std": [2.0, 0.5, 1.0, 3.0]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sdxl")
    return {
        "zeros": save_sdxl(root / "zeros"),
        "no zeros": save_sdxl(root / "no-zeros", force_zeros=False),
        "statistics": save_sdxl(root / "statistics", vae=STATISTICS),
        "light": save_sdxl(root / "light", vae={"force_upcast": False}),
        "inpainting": save_sdxl(root / "inpainting", in_channels=9),
        "guidance embedded": save_sdxl(root / "embedded", time_cond_proj_dim=8),
    }


def load(folder: Path, dtype: torch.dtype = torch.float32) -> StableDiffusionXL:
    return load_family(StableDiffusionXL, folder, dtype)


def oracle(folder: Path, dtype: torch.dtype = torch.float32) -> StableDiffusionXLPipeline:
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, dtype=dtype, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class TestWhatItIs:
    def test_configuration_says_all(self, folders: dict[str, Path]) -> None:
        info = StableDiffusionXL.describe(ModelFiles(folders["zeros"]))
        assert (info.family, info.text_encoders, info.takes_sizes, info.inpainting) == ("sdxl", 2, True, False)
        assert (info.default_width, info.default_height, info.size_factor) == (32, 32, 8)
        assert info.max_clip_skip == 2  # of the shallower text encoder
        assert StableDiffusionXL.describe(ModelFiles(folders["inpainting"])).inpainting

    def test_each_family_knows_its_own(self, folders: dict[str, Path], tiny_model: Path) -> None:
        for folder, expected in ((folders["zeros"], [False, True]), (tiny_model, [True, False])):
            index = json.loads((folder / "model_index.json").read_text())
            assert [family.detect(index) for family in (StableDiffusion, StableDiffusionXL)] == expected

    @pytest.mark.parametrize("change", [{"text_encoder": [None, None]}, {"requires_aesthetics_score": True}])
    def test_refiners_are_refused(self, change: dict[str, Any], tmp_path: Path) -> None:
        file = save_sdxl(tmp_path / "refiner") / "model_index.json"
        index = {**json.loads(file.read_text()), **change}
        file.write_text(json.dumps(index))
        assert StableDiffusionXL.detect(index)
        assert not StableDiffusion.detect(index)
        with pytest.raises(UnsupportedCombination, match="a refiner"):
            StableDiffusionXL.describe(ModelFiles(tmp_path / "refiner"))

    def test_other_denoisers_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UnsupportedCombination, match="takes 8 channels where its VAE makes 4"):
            StableDiffusionXL.describe(ModelFiles(save_sdxl(tmp_path / "instructed", in_channels=8)))

    def test_schedulers_are_not_patched(self, tmp_path: Path) -> None:
        """Unlike StableDiffusionPipeline, that of SDXL leaves the scheduler as it is configured."""
        folder = save_sdxl(tmp_path / "model")
        file = folder / "scheduler" / "scheduler_config.json"
        file.write_text(json.dumps({"_class_name": "DDIMScheduler", "beta_start": 0.001}))
        index = json.loads((folder / "model_index.json").read_text())
        index["scheduler"][1] = "DDIMScheduler"
        (folder / "model_index.json").write_text(json.dumps(index))
        config = load(folder).scheduler_config
        assert config["beta_start"] == 0.001
        assert not {"steps_offset", "clip_sample"} & set(config)


# The model, what request and pipeline are given, and what is left out of that to show that it has an effect.
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "unset": ("zeros", {}, ""),
    "unset, no zeros": ("no zeros", {}, ""),
    "empty": ("zeros", {"negative_prompt": ""}, "negative_prompt"),
    "negative prompt": ("zeros", {"negative_prompt": "blurry"}, "negative_prompt"),
    "negative prompt, no zeros": ("no zeros", {"negative_prompt": "blurry"}, "negative_prompt"),
    "prompt 2": ("zeros", {"prompt_2": "oil on canvas"}, "prompt_2"),
    "negative prompt 2": ("zeros", {"negative_prompt": "", "negative_prompt_2": "grey"}, "negative_prompt_2"),
    "clip skip": ("zeros", {"clip_skip": 1, "negative_prompt": "blurry"}, "clip_skip"),
    "clip skip 2": ("zeros", {"clip_skip": 2}, "clip_skip"),
    "too long": ("zeros", {"prompt_2": "a b " * 60}, "prompt_2"),
}


@torch.no_grad()
def encoded(pipeline: StableDiffusionXLPipeline, **given: Any) -> list[torch.Tensor]:
    """Hidden and pooled, unconditional first."""
    conditional, unconditional, pooled, negative_pooled = pipeline.encode_prompt(
        **{"prompt": a_request().prompt, **given}, device="cpu"
    )
    return [unconditional, conditional, negative_pooled, pooled]


@pytest.mark.parametrize("name", CASES)
def test_prompts_equal_diffusers(name: str, folders: dict[str, Path]) -> None:
    folder, given, feature = CASES[name]
    pipeline = oracle(folders[folder])
    theirs = encoded(pipeline, **given)
    if feature:
        without = encoded(pipeline, **{key: value for key, value in given.items() if key != feature})
        effect = max(largest(a, b) for a, b in zip(theirs, without, strict=True))
        assert effect > 0.1, "the case cannot fail"
    rows = embedded(load(folders[folder]), a_request(**given))
    ours = [*(row.hidden for row in rows), *(row.pooled for row in rows)]
    assert max(largest(a, b) for a, b in zip(ours, theirs, strict=True)) <= BOUND
    assert bool(rows[1].warnings) == (name == "too long")


def test_unset_and_empty_negative_prompts_differ(folders: dict[str, Path]) -> None:
    unset, empty = (embedded(load(folders["zeros"]), a_request(negative_prompt=text))[0] for text in (None, ""))
    assert not unset.hidden.any()
    assert largest(empty.hidden, unset.hidden) > 0.1


def test_the_pooled_embedding_is_that_of_the_first_chunk(folders: dict[str, Path]) -> None:
    model = load(folders["zeros"])
    words = [chr(ord("a") + n % 26) for n in range(100)]
    request = a_request(prompt=" ".join(words), prompt_2="a", prompt_syntax="weighted")
    unset, ours = embedded(model, request)
    assert unset.hidden.shape == ours.hidden.shape == (1, 2 * 77, 32 + 48)
    plain = embedded(model, a_request(prompt=" ".join(words[:75]), prompt_2="a"))[1]
    assert largest(ours.hidden[:, :77], plain.hidden) <= BOUND
    assert largest(ours.pooled, plain.pooled) <= BOUND
    rest = embedded(model, a_request(prompt=" ".join(words[75:]), negative_prompt=""))
    assert largest(ours.hidden[:, 77:, :32], rest[1].hidden[..., :32]) <= BOUND
    assert largest(ours.hidden[:, 77:, 32:], rest[0].hidden[..., 32:]) <= BOUND


def evaluation(model: StableDiffusionXL, *requests: Any, extra: int = 0) -> Evaluation:
    """An evaluation of all rows of these requests, at timesteps of their own."""
    rows = [
        Row(SimpleNamespace(request=request, adapters=(), bucket=0), prompt, unconditional=number == 0)
        for request in requests
        for number, prompt in enumerate(embedded(model, request))
    ]
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(len(rows), 4 + extra, 16, 16, generator=generator)
    return Evaluation(
        rows,
        latents[:, :4],
        torch.arange(len(rows)) * 100.0 + 1,
        torch.cat([row.prompt.hidden for row in rows]),
        latents[:, 4:] if extra else None,
    )


SIZES = SizeConditioning(original_size=(512, 768), crop=(16, 32), target_size=(1024, 640))


def test_sizes_equal_diffusers(folders: dict[str, Path]) -> None:
    model, pipeline = load(folders["zeros"]), oracle(folders["zeros"])
    sized = a_request(negative_prompt="blurry", size_conditioning=SIZES)
    own = a_request(prompt="a blue square", width=48, height=24)
    added = model.added_conditions(evaluation(model, sized, own))["added_cond_kwargs"]
    ids = {"dtype": torch.float32, "text_encoder_projection_dim": 24}
    theirs = [
        pipeline._get_add_time_ids(SIZES.original_size, SIZES.crop, SIZES.target_size, **ids),
        pipeline._get_add_time_ids((24, 48), (0, 0), (24, 48), **ids),
    ]
    assert torch.equal(added["time_ids"], torch.cat([theirs[0], theirs[0], theirs[1], theirs[1]]))
    pooled = [
        *encoded(pipeline, negative_prompt="blurry")[2:],
        *encoded(pipeline, prompt="a blue square")[2:],
    ]
    assert largest(added["text_embeds"], torch.cat(pooled)) <= BOUND


@torch.no_grad()
def test_rows_of_other_sizes_share_an_evaluation(folders: dict[str, Path]) -> None:
    model = load(folders["zeros"])
    whole = evaluation(model, a_request(size_conditioning=SIZES), a_request(prompt="a blue square"))
    together = model.predict(whole)
    alone = torch.cat([model.predict(whole.select([index])) for index in range(4)])
    assert largest(together, alone) <= 1e-5
    whole.rows[0].sample.request = a_request()
    assert largest(model.predict(whole), together) > 1e-2, "the case cannot fail"


@torch.no_grad()
def test_inpainting_models_see_the_extra_channels(folders: dict[str, Path], tmp_path: Path) -> None:
    plain = load_family(StableDiffusion, save_sd(tmp_path / "sd", in_channels=9))
    for model in (load(folders["inpainting"]), plain):
        whole = evaluation(model, a_request(), extra=5)
        assert model.latent_shape(32, 48) == (4, 24, 16)
        latents = torch.cat([whole.latents, whole.extra_channels], dim=1)
        added = model.added_conditions(whole)
        expected = model.unet(latents, whole.timesteps, whole.prompts, **added).sample
        assert torch.equal(model.predict(whole), expected)
        changed = dataclasses.replace(whole, extra_channels=whole.extra_channels + 1)
        assert largest(model.predict(changed), expected) > 1e-2


@torch.no_grad()
def test_a_denoiser_that_takes_the_guidance_has_one_row(folders: dict[str, Path]) -> None:
    model, pipeline = load(folders["guidance embedded"]), oracle(folders["guidance embedded"])
    whole = evaluation(model, a_request(guidance_scale=3.0), a_request(guidance_scale=8.0))
    assert len(whole.rows) == 2
    condition = pipeline.get_guidance_scale_embedding(torch.tensor([2.0, 7.0]), embedding_dim=8)
    added = model.added_conditions(whole)
    theirs = model.unet(whole.latents, whole.timesteps, whole.prompts, timestep_cond=condition, **added).sample
    assert largest(model.predict(whole), theirs) <= BOUND
    assert largest(model.predict(whole), model.predict(dataclasses.replace(whole, rows=whole.rows[::-1]))) > 1e-3


class TestVae:
    """Of models in half precision, with a VAE that overflows there or does not, and with statistics."""

    @pytest.fixture(params=["zeros", "statistics", "light"])
    def folder(self, request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
        return folders[request.param]

    @pytest.fixture(params=[torch.float32, torch.float16], ids=str)
    def dtype(self, request: pytest.FixtureRequest) -> torch.dtype:
        return request.param  # type: ignore[no-any-return]

    @torch.no_grad()
    def test_decodes_as_diffusers(self, folder: Path, dtype: torch.dtype) -> None:
        arguments: dict[str, Any] = {"prompt": "a red circle", "num_inference_steps": 2, "width": 32, "height": 32}
        pipeline = oracle(folder, dtype)
        pipeline.vae.to(memory_format=torch.channels_last)  # as the server has it, which rounds otherwise
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # diffusers on its own use of upcast_vae
            results = [
                pipeline(**arguments, generator=torch.Generator().manual_seed(3), output_type=kind).images
                for kind in ("latent", "pt")
            ]
        model = load(folder, dtype)
        pictures = model.decode(results[0])
        assert pictures.dtype == model.dtype == dtype
        ours = (pictures / 2 + 0.5).clamp(0, 1)
        bound = BOUND if dtype == torch.float32 else 1e-3
        assert largest(ours, results[1]) <= bound
        assert largest(model.decode(results[0].flip(1)).clamp(-1, 1), pictures.clamp(-1, 1)) > 0.1

    @pytest.mark.parametrize("drawn", [True, False])
    @torch.no_grad()
    def test_encodes_as_diffusers(self, folder: Path, dtype: torch.dtype, drawn: bool) -> None:
        images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)).to(dtype) * 2 - 1
        model = load(folder, dtype)
        ours = model.encode(images, torch.Generator().manual_seed(4) if drawn else None)
        assert ours.dtype == dtype
        pipeline = StableDiffusionXLImg2ImgPipeline(**oracle(folder, dtype).components, add_watermarker=False)
        pipeline.vae.to(memory_format=torch.channels_last)
        if not drawn:
            silent_mode(pipeline.vae)
        theirs = pipeline.prepare_latents(
            images, None, 2, 1, dtype, CPU, torch.Generator().manual_seed(4), add_noise=False
        )
        assert largest(ours, theirs) <= (BOUND if dtype == torch.float32 else 1e-3 * float(theirs.abs().max()))
        other = model.encode(images, None if drawn else torch.Generator().manual_seed(4))
        assert largest(ours, other) > 0.01, "the case cannot fail"

    @torch.no_grad()
    def test_statistics_have_an_effect(self, folders: dict[str, Path]) -> None:
        latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        plain, normalised = (load(folders[name]).decode(latents) for name in ("zeros", "statistics"))
        assert largest(plain, normalised) > 0.1

    def test_is_kept_once_in_single_precision(self, folders: dict[str, Path]) -> None:
        kept = {name: load(folders[name], torch.float16) for name in ("zeros", "light")}
        assert kept["zeros"].vae.dtype == torch.float32
        assert kept["light"].vae.dtype == torch.float16
        for model in kept.values():
            assert (model.unet.dtype, model.dtype) == (torch.float16, torch.float16)
        halves = sum(p.numel() * 2 for p in kept["light"].vae.parameters())
        assert kept["zeros"].weight_bytes - kept["light"].weight_bytes == halves

    def test_bfloat16_is_single_precision_too(self, folders: dict[str, Path]) -> None:
        model = load(folders["zeros"], torch.bfloat16)
        with torch.no_grad():
            latents = model.encode(torch.zeros(1, 3, 32, 32, dtype=torch.bfloat16))
            assert latents.dtype == model.decode(latents).dtype == torch.bfloat16
        assert model.vae.dtype == torch.float32


def silent_mode(vae: Any) -> None:
    """Let what is drawn of this VAE's distributions be their mode."""
    encode = vae.encode

    def encode_without_deviation(images: torch.Tensor) -> Any:
        output = encode(images)
        output.latent_dist.std = torch.zeros_like(output.latent_dist.std)
        return output

    vae.encode = encode_without_deviation
