"""Weights from every kind of file are, bit by bit, those that diffusers loads from it."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from darkroom_plugins.files import ModelFiles, load_weights
from darkroom_plugins.files.hub import HubFiles
from darkroom_plugins.files.hub_paths import located
from tests.checkpoints import COMMIT, ldm_vae, save_checkpoint, save_to_cache
from tests.hub import Hub
from tests.tiny import save_sd
from tests.tiny_sdxl import save_sdxl

PARTS = {
    "sd": ("unet", "vae", "text_encoder"),
    "sd2": ("unet", "vae", "text_encoder"),
    "sdxl": ("unet", "vae", "text_encoder", "text_encoder_2"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models in folders with plain weights and the fp16 variant, in shards, with the variant alone, in one file."""
    folder = tmp_path_factory.mktemp("files")
    save_sd(folder / "sd")
    save_sd(folder / "sd2", seed=1, use_linear_projection=True)
    save_sdxl(folder / "sdxl")
    for name in PARTS:
        save_checkpoint(folder / f"{name}.safetensors", folder / name, open_clip=name == "sd2")
        pipe = pipeline(folder / name)
        pipe.save_pretrained(folder / f"{name}-shards", max_shard_size="40KB")
        pipe = pipe.to(torch.float16)
        pipe.save_pretrained(folder / name, variant="fp16")
        pipe.save_pretrained(folder / f"{name}-shards", variant="fp16", max_shard_size="40KB")
        pipe.save_pretrained(folder / f"{name}-only", variant="fp16")
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with another VAE, and that VAE in files of its own."""
    folder = tmp_path_factory.mktemp("other")
    vae = save_sd(folder / "other", seed=9) / "vae"
    config = json.loads((vae / "config.json").read_text())
    (vae / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.25}))
    save_checkpoint(folder / "whole.safetensors", folder / "other")
    save_file({name: each.contiguous() for name, each in ldm_vae(vae).items()}, folder / "first.safetensors")
    shutil.copy(vae / "diffusion_pytorch_model.safetensors", folder / "diffusers.safetensors")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The hub's cache, without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture
def hub(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one model, reached as the real one, and an empty cache."""
    with Hub(folder / "sd", "tiny/sd") as running:
        running.reached(monkeypatch)
        running.serving.set()
        yield running


def pipeline(folder: Path, **options: Any) -> Any:
    return diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, **options)


def of_single_file(folder: Path, name: str) -> Any:
    kind = diffusers.StableDiffusionXLPipeline if name == "sdxl" else diffusers.StableDiffusionPipeline
    return kind.from_single_file(str(folder / f"{name}.safetensors"), config=str(folder / name), dtype=torch.float32)


# What is loaded, and how diffusers loads it.
SOURCES: dict[str, tuple[Callable[[Path, str], ModelFiles], Callable[[Path, str], Any]]] = {
    "plain": (lambda f, n: ModelFiles(f / n), lambda f, n: pipeline(f / n)),
    "variant": (lambda f, n: ModelFiles(f / n, "fp16"), lambda f, n: pipeline(f / n, variant="fp16")),
    "the only variant": (lambda f, n: ModelFiles(f / f"{n}-only"), lambda f, n: pipeline(f / n, variant="fp16")),
    "shards": (lambda f, n: ModelFiles(f / f"{n}-shards"), lambda f, n: pipeline(f / f"{n}-shards")),
    "shards of a variant": (
        lambda f, n: ModelFiles(f / f"{n}-shards", "fp16"),
        lambda f, n: pipeline(f / f"{n}-shards", variant="fp16"),
    ),
    "single file": (lambda f, n: ModelFiles(f / n, checkpoint=f / f"{n}.safetensors"), of_single_file),
}


def no_default_dtype(*_: object) -> None:
    raise AssertionError("torch's default dtype is that of the whole process")


def filled(files: ModelFiles, part: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """What a network of these files has in the end, in single precision."""
    network = files.meta_network(part)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "set_default_dtype", no_default_dtype)
        files.fetch([part])
        load_weights(network, files.weights(part), torch.float32)
    return network.state_dict()


def equal(found: dict[str, torch.Tensor], expected: torch.nn.Module) -> bool:
    wanted = expected.float().state_dict()
    return found.keys() == wanted.keys() and all(torch.equal(each, wanted[name]) for name, each in found.items())


@pytest.mark.parametrize(
    ("source", "name"),
    [*((source, name) for source in SOURCES for name in ("sd", "sdxl")), ("single file", "sd2")],
)
def test_equals_diffusers(source: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = SOURCES[source]
    files, pipe = ours(folder, name), theirs(folder, name)
    for part in PARTS[name]:
        assert equal(filled(files, part, monkeypatch), getattr(pipe, part)), part
    kind = "safetensors" if "variant" in source else "fp16.safetensors"
    other = load_file(folder / name / "unet" / f"diffusion_pytorch_model.{kind}")["conv_in.weight"]
    assert not torch.equal(files.weights("unet")["conv_in.weight"].float(), other.float()), "the case cannot fail"


class TestNames:
    """Weights under names that were used once, or by other versions."""

    @pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
    @pytest.mark.parametrize("wrapped", [True, False])
    def test_of_text_encoders(
        self, part: str, wrapped: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.copytree(folder / "sdxl" / part, tmp_path / part)
        shutil.copy(folder / "sdxl" / "model_index.json", tmp_path)
        file = tmp_path / part / "model.safetensors"
        plain = {name.removeprefix("text_model."): each for name, each in load_file(file).items()}
        plain["embeddings.position_ids"] = torch.arange(77)[None]
        prefix = "text_model." if wrapped else ""
        save_file({name if "projection" in name else prefix + name: each for name, each in plain.items()}, file)
        found = filled(ModelFiles(tmp_path), part, monkeypatch)
        assert equal(found, getattr(pipeline(folder / "sdxl"), part))

    def test_of_the_vaes_attention(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        shutil.copytree(folder / "sd", tmp_path / "sd")
        file = tmp_path / "sd" / "vae" / "diffusion_pytorch_model.safetensors"
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        weights = load_file(file)
        for new, old in names.items():
            weights = {name.replace(new, old): each for name, each in weights.items()}
        save_file(weights, file)
        assert equal(filled(ModelFiles(tmp_path / "sd"), "vae", monkeypatch), pipeline(folder / "sd").vae)


class TestVae:
    """A VAE in place of the model's."""

    @pytest.mark.parametrize("name", ["other/vae", "whole.safetensors", "first.safetensors", "diffusers.safetensors"])
    @pytest.mark.parametrize("checkpoint", [True, False])
    def test_is_used(
        self, name: str, checkpoint: bool, other: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = folder / "sd.safetensors" if checkpoint else None
        files = ModelFiles(folder / "sd", None if checkpoint else "fp16", file, parts={"vae": other / name})
        assert equal(filled(files, "vae", monkeypatch), pipeline(other / "other").vae)
        assert files.config("vae")["scaling_factor"] == (0.25 if name == "other/vae" else 0.5)

    def test_of_another_kind(self, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"vae: .*unet is a UNet2DConditionModel, not an AutoencoderKL"):
            ModelFiles(folder / "sd", parts={"vae": folder / "sd" / "unet"}).meta_network("vae")


class TestRefusals:
    """What cannot be loaded is refused when the model is opened, and says what is there."""

    @pytest.fixture
    def model(self, folder: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(folder / "sd-shards", tmp_path / "model"))

    def test_of_missing_variants(self, folder: Path) -> None:
        with pytest.raises(OSError, match=r"unet has no variant 'bf16' but the plain weights, 'fp16'"):
            ModelFiles(folder / "sd", "bf16").meta_network("unet")
        with pytest.raises(OSError, match="unet has no variant 'bf16' but 'fp16'"):
            ModelFiles(folder / "sd-only", "bf16").meta_network("unet")

    def test_of_pickles(self, model: Path) -> None:
        for file in (model / "unet").glob("*.safetensors*"):
            file.unlink()
        with pytest.raises(OSError, match=r"unet has no weights as safetensors$"):
            ModelFiles(model).meta_network("unet")
        (model / "unet" / "diffusion_pytorch_model.bin").touch()
        with pytest.raises(OSError, match="as safetensors; pickle files are refused because they can run code"):
            ModelFiles(model).meta_network("unet")

    def test_of_missing_shards(self, model: Path) -> None:
        first = min((model / "unet").glob("diffusion_pytorch_model-*.safetensors"))
        first.unlink()
        with pytest.raises(OSError, match=f"unet lacks {first.name}"):
            ModelFiles(model).meta_network("unet")

    def test_of_shards_elsewhere(self, model: Path) -> None:
        index = model / "unet" / "diffusion_pytorch_model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../vae/diffusion_pytorch_model.safetensors"}}))
        with pytest.raises(ValueError, match="not the name of a safetensors file"):
            ModelFiles(model).meta_network("unet")

    def test_of_other_networks(self, folder: Path, tmp_path: Path) -> None:
        files = ModelFiles(save_sd(tmp_path / "wide", block_out_channels=(16, 64)))
        with pytest.raises(ValueError, match=r"not those of its UNet2DConditionModel: .* of \(.*64.*\) and not \(.*32"):
            load_weights(ModelFiles(folder / "sd").meta_network("unet"), files.weights("unet"), torch.float32)

    @pytest.mark.parametrize(
        ("config", "file", "problem"),
        [
            ("sdxl", "sd", r"unet: .* lacks 'label_emb.* the unet; .* is Stable Diffusion 1.x"),
            ("sdxl", "sd2", r"unet: .*; .* is Stable Diffusion 2.x"),
            ("sd", "sdxl", r"unet: .* not those of its UNet2DConditionModel: .*; .* is Stable Diffusion XL"),
        ],
    )
    def test_of_checkpoints_of_another_architecture(self, config: str, file: str, problem: str, folder: Path) -> None:
        with pytest.raises(ValueError, match=problem):
            ModelFiles(folder / config, checkpoint=folder / f"{file}.safetensors").meta_network("unet")

    def test_of_checkpoints_that_lack_a_part(self, folder: Path, tmp_path: Path) -> None:
        weights = load_file(folder / "sd.safetensors")
        save_file({n: each for n, each in weights.items() if not n.startswith("first")}, tmp_path / "cut.safetensors")
        files = ModelFiles(folder / "sd", checkpoint=tmp_path / "cut.safetensors")
        with pytest.raises(ValueError, match=r"vae: .*cut.safetensors has no weights of the vae; .* is Stable .* 1.x"):
            files.meta_network("vae")
        assert files.meta_network("unet")


class TestHub:
    """Models in the hub's local cache, without a network."""

    @pytest.mark.parametrize(
        ("name", "variant", "revision"), [("sd", None, None), ("sdxl-shards", "fp16", COMMIT), ("sdxl", "fp16", None)]
    )
    def test_equals_diffusers(
        self,
        name: str,
        variant: str | None,
        revision: str | None,
        folder: Path,
        cache: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        save_to_cache(cache, folder / name, "tiny/model")
        files = HubFiles.find("tiny/model", revision, variant)
        parts = PARTS[name.removesuffix("-shards")]
        assert files.fetched(parts)
        assert files.fetch_bytes(parts) == 0
        pipe = pipeline("tiny/model", variant=variant, cache_dir=cache, revision=revision)
        for part in parts:
            assert equal(filled(files, part, monkeypatch), getattr(pipe, part)), part

    def test_downloads_report_their_bytes(
        self, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub
    ) -> None:
        files, told = HubFiles.find("tiny/sd", None, "fp16"), []
        assert not [name for name in hub.downloads if name.endswith("safetensors")]
        monkeypatch.setattr(torch, "set_default_dtype", no_default_dtype)
        total = files.fetch_bytes(["unet", "vae"])
        files.fetch(["unet", "vae"], told.append)
        weights = [files.folder / part / "diffusion_pytorch_model.fp16.safetensors" for part in ("unet", "vae")]
        assert sum(told) == total == sum(each.stat().st_size for each in weights)
        assert (files.fetched(["unet", "vae"]), files.fetch_bytes(["unet", "vae"])) == (True, 0)
        assert not files.fetched(["text_encoder"])

    def test_adapters_of_peft_come_with_their_configuration(
        self, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Which has their scale. A repository without one is no error; a hub that cannot be reached is."""
        names = ["bare/adapter_model.safetensors", "it/adapter_config.json", "it/adapter_model.safetensors"]
        for name in names:
            file = tmp_path / "adapters" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(name)
        bare, it = (Path(f"hub:tiny/adapters@{COMMIT}/{each}/adapter_model.safetensors") for each in ("bare", "it"))
        with Hub(tmp_path / "adapters", "tiny/adapters") as running:
            running.reached(monkeypatch)
            running.serving.set()
            for _ in range(2):
                assert located(it).with_name("adapter_config.json").read_text() == "it/adapter_config.json"
                assert not located(bare).with_name("adapter_config.json").exists()
            assert sorted(running.downloads) == names
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert [located(each).read_text() for each in (bare, it)] == [names[0], names[2]]
        located(it).with_name("adapter_config.json").unlink()
        with pytest.raises(OSError, match=f"hub: tiny/adapters at {COMMIT} is not in the cache, and was not fetched"):
            located(it)

    def test_that_do_not_exist(self, hub: Hub) -> None:
        with pytest.raises(OSError, match="revision: tiny/sd has no 'v9'"):
            HubFiles.find("tiny/sd", "v9")
        with pytest.raises(OSError, match="hub: there is no repository tiny/old, or it is private"):
            HubFiles.find("tiny/old", None)
        with pytest.raises(OSError, match="hub: unet of tiny/sd has no variant 'bf16' but the plain weights, 'fp16'"):
            HubFiles.find("tiny/sd", None, "bf16").fetch(["unet"])

    def test_that_are_not_there(self, folder: Path, cache: Path) -> None:
        save_to_cache(cache, folder / "sd", "tiny/sd")
        with pytest.raises(OSError, match="hub: tiny/xl at main is not in the cache, and was not fetched"):
            HubFiles.find("tiny/xl", None)
        with pytest.raises(OSError, match="hub: tiny/sd at v2 is not in the cache, and was not fetched"):
            HubFiles.find("tiny/sd", "v2")
        with pytest.raises(ValueError, match="hub: 'a/b/c' is not the name of a repository"):
            HubFiles.find("a/b/c", None)

    def test_that_are_there_in_part(self, folder: Path, cache: Path) -> None:
        snapshot = save_to_cache(cache, folder / "sd", "tiny/sd")
        for file in (snapshot / "unet").glob("*.safetensors"):
            file.unlink()
        files = HubFiles.find("tiny/sd", None)
        assert files.meta_network("unet")
        assert not files.fetched(["unet"])
        with pytest.raises(OSError, match=f"hub: tiny/sd at {COMMIT} is not in the cache, and was not fetched"):
            files.fetch(["unet", "vae"])
        (snapshot / "unet" / "config.json").unlink()
        with pytest.raises(OSError, match="hub: tiny/sd lacks the configuration of a model or of a part of it"):
            HubFiles.find("tiny/sd", None)
