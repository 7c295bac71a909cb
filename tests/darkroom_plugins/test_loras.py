"""LoRAs of each dialect change a network as PEFT's own merged weights do, row by row, and what does not fit is told."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from darkroom_plugins.builtin.families.sd import StableDiffusion
from darkroom_plugins.builtin.families.sdxl import StableDiffusionXL
from darkroom_plugins.builtin.lora import Loras
from darkroom_plugins.request import LoraChoice
from tests.adapters import METHODS, adapted, merged, saved
from tests.checkpoints import ldm_unet
from tests.prompting import a_request
from tests.tiny import load_family, save_lora, save_sd
from tests.tiny_sdxl import save_sdxl

BOUND = 2e-5  # relative, of the network's output
PLUGIN = Loras()
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sd(tmp_path_factory.mktemp("loras") / "sd")


@pytest.fixture(scope="module")
def sd(folder: Path) -> StableDiffusion:
    return load_family(StableDiffusion, folder)


def kohya(file: Path, out: Path, names: Mapping[str, str]) -> Path:
    """PEFT's file as the trainers of kohya and LyCORIS write it; `names`: a layer's name → theirs."""
    config = json.loads((file.parent / "adapter_config.json").read_text())
    alpha, found = float(config.get("lora_alpha") or config.get("alpha")), Tensors()
    roles = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
    for name, tensor in load_file(file).items():
        layer = next(each for each in sorted(names, key=len, reverse=True) if f".model.{each}." in name)
        role = name.split(f".model.{layer}.")[1]
        if role.startswith("lora_magnitude_vector"):
            role, tensor = "dora_scale", tensor.reshape(-1, *[1] * (max(tensor.dim(), 2) - 1))
        theirs = f"lora_unet_{names[layer].replace('.', '_')}"
        found |= {f"{theirs}.{roles.get(role, role)}": tensor.contiguous(), f"{theirs}.alpha": torch.tensor(alpha)}
    save_file(found, out)
    return out


def layer_names(folder: Path) -> dict[str, str]:
    """The UNet's layers → their names in the first code."""
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    pairs = zip(weights, ldm_unet(folder / "unet"), strict=True)
    return {ours.rpartition(".")[0]: theirs.rpartition(".")[0] for ours, theirs in pairs}


INPUTS = {
    "sample": torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1)),
    "encoder_hidden_states": torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(2)),
}


@torch.no_grad()
def output(network: Any, rows: int = 1) -> torch.Tensor:
    inputs = {name: each.expand(rows, *each.shape[1:]) for name, each in INPUTS.items()}
    return network(timestep=torch.full((rows,), 500.0), return_dict=False, **inputs)[0]


def outputs(model: Any, files: Mapping[str, Path], rows: Sequence[Mapping[str, float]]) -> torch.Tensor:
    """The network's output for rows with these LoRAs: name → weight."""
    loaded = {name: PLUGIN.load_asset(file, model) for name, file in files.items()}
    assets: Any = SimpleNamespace(get=lambda kind, name: loaded[name])

    def row(loras: Mapping[str, float]) -> Any:
        request = a_request(loras=tuple(LoraChoice(name=name, weight=weight) for name, weight in loras.items()))
        return SimpleNamespace(sample=SimpleNamespace(request=request, model=model, assets=assets))

    evaluation: Any = SimpleNamespace(rows=[row(each) for each in rows], latents=torch.empty(0))
    PLUGIN.release()
    with PLUGIN.applied(model, evaluation, []):
        return output(model.unet, len(rows))


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


# Other trainers scale in other ways those that are left out.
KOHYA = ("LoRA", "DoRA", "LoHa", "LoHa with cores", "LoKr", "LoKr, decomposed")
CASES = [
    *(("PEFT", method) for method in METHODS),
    *(("kohya", method) for method in KOHYA),
    *(("first code", method) for method in ("LoRA", "LoKr, decomposed")),
]


@pytest.mark.parametrize(("dialect", "method"), CASES)
def test_equals_merged_weights(method: str, dialect: str, folder: Path, sd: StableDiffusion, tmp_path: Path) -> None:
    model = adapted(folder, method)
    file = saved(model, tmp_path)
    if dialect != "PEFT":
        names = layer_names(folder)
        file = kohya(file, tmp_path / "it.safetensors", names if dialect == "first code" else {n: n for n in names})
    assert PLUGIN.describe_asset(file).components == ("unet",)
    assert PLUGIN.incompatibility(file, sd) is None
    plain, full, half = outputs(sd, {"it": file}, [{}, {"it": 1.0}, {"it": 0.5}]).split(1)
    assert error(plain, output(UNet2DConditionModel.from_pretrained(folder / "unet"))) <= BOUND
    assert error(full, output(merged(model))) <= BOUND
    assert error(half, output(merged(model, 0.5))) <= BOUND
    assert error(full, plain) > 0.05, "the case cannot fail"
    assert error(half, full) > 0.01, "the case cannot fail"


def test_rows_have_their_own(folder: Path, sd: StableDiffusion, tmp_path: Path) -> None:
    methods = {"LoRA": 1.0, "DoRA": 0.8, "LoHa": -0.7, "LoKr": 0.5}
    models = {method: adapted(folder, method, seed) for seed, method in enumerate(methods)}
    files = {method: saved(model, tmp_path / method) for method, model in models.items()}
    base = UNet2DConditionModel.from_pretrained(folder / "unet")
    own = {method: merged(model, methods[method]) for method, model in models.items()}
    together = copy.deepcopy(base).state_dict()
    for network in own.values():
        for name, weight in network.state_dict().items():
            together[name] = together[name] + (weight - base.state_dict()[name])
    summed = copy.deepcopy(base)
    summed.load_state_dict(together)
    rows = [{}, *({method: weight} for method, weight in methods.items()), methods, {}]
    expected = [output(each) for each in (base, *own.values(), summed, base)]
    for ours, theirs in zip(outputs(sd, files, rows).split(1), expected, strict=True):
        assert error(ours, theirs) <= BOUND


def test_magnitudes_of_weights_that_are_elsewhere(folder: Path, tmp_path: Path) -> None:
    """DoRA reads the layer's own weight, which sequential offload puts on the device for the layer's forward alone."""
    model, sd = adapted(folder, "DoRA"), load_family(StableDiffusion, folder)
    accelerate.cpu_offload(sd.components["unet"], torch.device("cpu"))
    assert next(sd.unet.parameters()).is_meta
    assert error(outputs(sd, {"it": saved(model, tmp_path)}, [{"it": 1.0}]), output(merged(model))) <= BOUND


def test_whole_matrices(folder: Path, sd: StableDiffusion, tmp_path: Path) -> None:
    """The difference of two models, in all layers."""
    base = UNet2DConditionModel.from_pretrained(folder / "unet")
    other = UNet2DConditionModel.from_pretrained(save_sd(tmp_path / "other", seed=5) / "unet")
    tensors = Tensors()
    for name, weight in other.state_dict().items():
        layer, _, kind = name.rpartition(".")
        norm = "norm" in layer.rpartition(".")[2] or layer.endswith(".norm")
        role = {"weight": "w_norm" if norm else "diff", "bias": "b_norm" if norm else "diff_b"}[kind]
        tensors[f"lora_unet_{layer.replace('.', '_')}.{role}"] = weight - base.state_dict()[name]
    save_file(tensors, tmp_path / "diff.safetensors")
    ours = outputs(sd, {"it": tmp_path / "diff.safetensors"}, [{"it": 1.0}])
    assert error(ours, output(other)) <= 1e-4  # differences of weights are rounded
    assert error(ours, output(base)) > 0.1, "the case cannot fail"


def test_convolutions_with_cores(folder: Path, sd: StableDiffusion, tmp_path: Path) -> None:
    """LoCon with `lora_mid`: three convolutions."""
    layer, generator = "down_blocks.1.resnets.0.conv1", torch.Generator().manual_seed(3)
    down, mid, up = (torch.randn(shape, generator=generator) for shape in ((3, 16, 1, 1), (3, 3, 3, 3), (32, 3, 1, 1)))
    flat = f"lora_unet_{layer.replace('.', '_')}"
    parts = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(1.5)}
    save_file({f"{flat}.{role}": each for role, each in parts.items()}, tmp_path / "it.safetensors")
    network = UNet2DConditionModel.from_pretrained(folder / "unet")
    conv = network.get_submodule(layer)

    def add(_layer: Any, inputs: Any, result: torch.Tensor) -> torch.Tensor:
        inner = torch.nn.functional.conv2d(torch.nn.functional.conv2d(inputs[0], down), mid, padding=1)
        return result + 0.5 * torch.nn.functional.conv2d(inner, up)

    conv.register_forward_hook(add)
    assert error(outputs(sd, {"it": tmp_path / "it.safetensors"}, [{"it": 1.0}]), output(network)) <= BOUND


def test_magnitudes_of_columns(folder: Path, sd: StableDiffusion, tmp_path: Path) -> None:
    """LyCORIS' DoRA without `wd_on_out`."""
    layer, generator = "mid_block.attentions.0.transformer_blocks.0.ff.net.2", torch.Generator().manual_seed(3)
    network = UNet2DConditionModel.from_pretrained(folder / "unet")
    weight = network.get_submodule(layer).weight
    down, up = torch.randn(2, 128, generator=generator), torch.randn(32, 2, generator=generator)
    magnitude = torch.rand(1, 128, generator=generator) + 0.5
    flat = f"lora_unet_{layer.replace('.', '_')}"
    parts = {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": magnitude}
    save_file({f"{flat}.{role}": each for role, each in parts.items()}, tmp_path / "it.safetensors")
    with torch.no_grad():
        whole = weight + up @ down
        weight.copy_(whole * magnitude / whole.norm(dim=0, keepdim=True))
    assert error(outputs(sd, {"it": tmp_path / "it.safetensors"}, [{"it": 1.0}]), output(network)) <= BOUND


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


FORWARD = "mid_block.attentions.0.transformer_blocks.0.ff.net.2"
DOWN, UP = normal(2, 128), normal(32, 2)
CHANGES: dict[str, tuple[str, Tensors, torch.Tensor]] = {  # a layer, a file's tensors of it, the change of its weight
    "alpha as an integer": (
        FORWARD,
        {"lora_down.weight": DOWN, "lora_up.weight": UP, "alpha": torch.tensor(1)},
        UP @ DOWN / 2,
    ),
    "a matrix as of a convolution": (FORWARD, {"diff": normal(32, 128, 1, 1)}, normal(32, 128)),
    "a flat matrix": ("conv_in", {"diff": normal(16, 36)}, normal(16, 4, 3, 3)),
    "a bias": ("conv_in", {"diff_b": normal(16)}, torch.zeros(())),
    "a bias of a norm": ("mid_block.resnets.0.norm1", {"b_norm": normal(32)}, torch.zeros(())),
    "LoRA with a bias": (
        FORWARD,
        {"lora_down.weight": DOWN, "lora_up.weight": UP, "alpha": torch.tensor(1.0), "diff_b": normal(32)},
        UP @ DOWN / 2,
    ),
    "LoKr with a bias": (
        "conv_in",
        {"lokr_w1": normal(4, 1), "lokr_w2": normal(4, 4, 3, 3), "diff_b": normal(16)},
        torch.kron(normal(4, 1, 1, 1), normal(4, 4, 3, 3)),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_of_a_layer(name: str, folder: Path, sd: StableDiffusion, tmp_path: Path) -> None:
    layer, parts, weight = CHANGES[name]
    flat = f"lora_unet_{layer.replace('.', '_')}"
    save_file({f"{flat}.{role}": each for role, each in parts.items()}, tmp_path / "it.safetensors")
    assert PLUGIN.incompatibility(tmp_path / "it.safetensors", sd) is None
    rows = outputs(sd, {"it": tmp_path / "it.safetensors"}, [{"it": 1.0}, {}, {"it": 0.5}]).split(1)
    for ours, scale in zip(rows, (1.0, 0.0, 0.5), strict=True):
        network = UNet2DConditionModel.from_pretrained(folder / "unet")
        with torch.no_grad():
            network.get_submodule(layer).weight.add_(scale * weight)
            network.get_submodule(layer).bias.add_(scale * parts.get("diff_b", parts.get("b_norm", torch.zeros(()))))
        assert error(ours, output(network)) <= BOUND
    assert error(rows[0], rows[1]) > 0.01, "the case cannot fail"


def test_magnitudes_of_zeros(folder: Path, sd: StableDiffusion, tmp_path: Path) -> None:
    """A row without direction stays zero."""
    network = UNet2DConditionModel.from_pretrained(folder / "unet")
    weight = network.get_submodule(FORWARD).weight
    flat = f"lora_unet_{FORWARD.replace('.', '_')}"
    save_file({f"{flat}.diff": -weight.detach(), f"{flat}.dora_scale": torch.ones(32, 1)}, tmp_path / "it.safetensors")
    with torch.no_grad():
        weight.zero_()
    assert error(outputs(sd, {"it": tmp_path / "it.safetensors"}, [{"it": 1.0}]), output(network)) <= BOUND


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    return save_lora(folder.parent / "plain.safetensors", folder, seed=1, networks=("unet", "text_encoder"))


def test_keys_that_do_nothing_do_not_refuse_a_file(
    plain: Path, folder: Path, sd: StableDiffusion, tmp_path: Path
) -> None:
    more = {
        "lora_te_text_model_embeddings.position_ids": torch.arange(77.0)[None],
        "text_encoder.text_model.embeddings.position_ids": torch.arange(77)[None],
        "v_pred": torch.empty(0),
        "trainer.config": torch.frombuffer(bytearray(b'{"steps": 100}'), dtype=torch.uint8),
        "global_step": torch.tensor(7.0),
        "lora_unet_nothing.alpha": torch.tensor(4.0),
    }
    file = tmp_path / "more.safetensors"
    save_file({**load_file(plain), **more}, file)
    assert PLUGIN.describe_asset(file).components == ("unet", "text_encoder")
    assert PLUGIN.incompatibility(file, sd) is None
    one, other = (outputs(sd, {"it": each}, [{"it": 1.0}]) for each in (plain, file))
    assert torch.equal(one, other)


LAYER = "lora_unet_mid_block_attentions_0_proj_in"
UNKNOWN: dict[str, tuple[Tensors, str]] = {
    "OFT": ({f"{LAYER}.oft_blocks": torch.ones(2, 4, 4)}, "which is of OFT; that is not supported"),
    "IA3": ({f"{LAYER}.on_input": torch.ones(1)}, "which is of IA3"),
    "GLoRA": ({f"{LAYER}.a1.weight": torch.ones(4, 4)}, "which is of GLoRA"),
    "VeRA": ({"base_model.model.conv_in.vera_lambda_b": torch.ones(4)}, "which is of VeRA"),
    "biases": ({"unet.conv_in.lora_B.bias": torch.ones(4)}, "which is of LoRA with biases"),
    "an embedding": ({"bundle_emb.cat.string_to_param.*": torch.ones(4)}, "a bundled embedding"),
    "a VAE's": ({"vae.conv_in.weight": torch.ones(4)}, "it has vae.conv_in.weight, which is no LoRA's matrix"),
    "nothing": ({f"{LAYER}.alpha": torch.tensor(1.0)}, "it has no LoRA's matrices"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_other_dialects_are_told_by_name(name: str, plain: Path, tmp_path: Path) -> None:
    tensors, problem = UNKNOWN[name]
    others = {} if name == "nothing" else load_file(plain)
    save_file({**others, **tensors}, tmp_path / "it.safetensors")
    with pytest.raises(ValueError, match=problem.replace("(", r"\(")):
        PLUGIN.describe_asset(tmp_path / "it.safetensors")


MISFITS: dict[str, tuple[Tensors, str]] = {
    "a layer's shape": (
        {f"{LAYER}.lora_down.weight": torch.ones(2, 48), f"{LAYER}.lora_up.weight": torch.ones(32, 2)},
        f"its {LAYER} is of 2 x 48 (down), 32 x 2 (up), the model's of 32 x 32 x 1 x 1",
    ),
    "rows for columns": (
        {
            "lora_unet_conv_in.lora_down.weight": torch.ones(2, 16),
            "lora_unet_conv_in.lora_up.weight": torch.ones(36, 2),
        },
        "its lora_unet_conv_in is of 2 x 16 (down), 36 x 2 (up), the model's of 16 x 4 x 3 x 3",
    ),
    "factors": (
        {f"{LAYER}.hada_{role}": torch.ones(32, 3) for role in ("w1_a", "w1_b", "w2_a", "w2_b")},
        f"its {LAYER} is of 32 x 3 (w1_a)",
    ),
    "a factor": ({f"{LAYER}.lora_down.weight": torch.ones(2, 32)}, f"its {LAYER} is of 2 x 32 (down), the model's"),
    "a matrix": ({f"{LAYER}.diff": torch.ones(32, 31)}, f"its {LAYER} is of 32 x 31 (weight), the model's"),
    "magnitudes": (
        {
            f"{LAYER}.lora_down.weight": torch.ones(2, 32),
            f"{LAYER}.lora_up.weight": torch.ones(32, 2),
            f"{LAYER}.dora_scale": torch.ones(31, 1),
        },
        "is of 31 x 1 (dora_scale), 2 x 32 (down), 32 x 2 (up), the model's",
    ),
    "axes": (
        {f"{LAYER}.lora_down.weight": torch.ones(32), f"{LAYER}.lora_up.weight": torch.ones(32)},
        f"its {LAYER} is of 32 (down), 32 (up), the model's of 32 x 32 x 1 x 1",
    ),
    "magnitudes of a norm": (
        {"lora_unet_conv_norm_out.w_norm": torch.ones(16), "lora_unet_conv_norm_out.dora_scale": torch.ones(1, 16)},
        "is of 1 x 16 (dora_scale), 16 (weight), the model's of 16",
    ),
    "a bias": ({f"{LAYER}.diff_b": torch.ones(31)}, f"its {LAYER} is of 31 (bias), the model's of 32 x 32 x 1 x 1"),
    "a layer": (
        {"lora_unet_no.lora_down.weight": torch.ones(2, 32), "lora_unet_no.lora_up.weight": torch.ones(32, 2)},
        "the model lacks 1 of its 1 layers, as lora_unet_no",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_known_from_the_header(name: str, sd: StableDiffusion, tmp_path: Path) -> None:
    tensors, problem = MISFITS[name]
    save_file({key: each.contiguous() for key, each in tensors.items()}, tmp_path / "it.safetensors")
    assert PLUGIN.describe_asset(tmp_path / "it.safetensors").weight_bytes > 0
    assert problem in str(PLUGIN.incompatibility(tmp_path / "it.safetensors", sd))


def test_of_another_family(plain: Path, tmp_path: Path) -> None:
    xl = load_family(StableDiffusionXL, save_sdxl(tmp_path / "xl"))
    why = str(PLUGIN.incompatibility(plain, xl))
    assert "attn2.to_k is of 4 x 32 (down), 16 x 4 (up), the model's of 16 x 80" in why


OLD_NAMES = {
    "unet.X.attn1.processor.to_q_lora.down.weight": ("unet", "X.attn1.to_q"),
    "X.attn1.processor.to_out_lora.up.weight": ("unet", "X.attn1.to_out.0"),
    "unet.X.attn1.to_out.0.lora.down.weight": ("unet", "X.attn1.to_out.0"),
    "base_model.model.X.attn1.to_q.lora_A.default.weight": ("unet", "X.attn1.to_q"),
    "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_A.weight": ("unet", "X.attn1.to_q"),
    "lycoris_X_attn1_to_q.lokr_w1": ("unet", "X.attn1.to_q"),
    "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.up.weight": (
        "text_encoder",
        "encoder.layers.0.mlp.fc1",
    ),
    "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.up.weight": (
        "text_encoder",
        "encoder.layers.0.self_attn.q_proj",
    ),
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": ("text_encoder", "encoder.layers.0.mlp.fc1"),
    "base_model.model.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": ("text_encoder", "encoder.layers.0.mlp.fc1"),
}


@pytest.mark.parametrize("name", OLD_NAMES)
def test_names(name: str, sd: StableDiffusion, tmp_path: Path) -> None:
    from darkroom_plugins.builtin.loras.dialects import LoraFile
    from darkroom_plugins.builtin.loras.layer_names import LayerNames, component_of

    block, (part, layer) = "down_blocks.0.attentions.0.transformer_blocks.0", OLD_NAMES[name]
    joined = block.replace(".", "_") if name.startswith("lycoris") else block
    save_file({name.replace("X", joined): torch.ones(1, 1)}, tmp_path / "it.safetensors")
    (found,) = LoraFile(tmp_path / "it.safetensors").layers
    known = LayerNames({name: sd.shapes(name) for name in sd.meta_components}).find(found)
    assert known is not None
    assert (known[0], known[1].removeprefix("text_model.")) == (part, layer.replace("X", block))
    assert component_of(found) == part
