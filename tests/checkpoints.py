"""Models of diffusers' layout in other ones: as a single file under the names of the first code, as a repository of the
hub in its local cache."""

import hashlib
import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Tensors = dict[str, torch.Tensor]

UNET_NAMES = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET_NAMES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
VAE_NAMES = {
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm",
    "to_out.0": "proj_out",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
}
OPEN_CLIP_NAMES = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "self_attn": "attn",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "text_projection.weight": "text_projection",
}


def save_checkpoint(file: Path, model: Path, open_clip: bool = False) -> Path:
    """A single-file checkpoint of a model; with `open_clip` its only text encoder is named as in Stable Diffusion 2."""
    xl = (model / "text_encoder_2").exists()
    first = "conditioner.embedders.0." if xl else "cond_stage_model."
    text = _text_model(load_file(model / "text_encoder" / "model.safetensors"))
    names = {
        "model.diffusion_model.": ldm_unet(model / "unet"),
        "first_stage_model.": ldm_vae(model / "vae"),
    }
    if open_clip:
        names[f"{first}model."] = _with_last_layer(_open_clip(text))
    else:
        names[f"{first}transformer.text_model."] = text | {"embeddings.position_ids": torch.arange(77)[None]}
    if xl:
        second = _text_model(load_file(model / "text_encoder_2" / "model.safetensors"))
        names["conditioner.embedders.1.model."] = _open_clip(second) | {"logit_scale": torch.tensor(4.6)}
    tensors = {prefix + name: tensor for prefix, each in names.items() for name, tensor in each.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return file


def ldm_unet(folder: Path) -> Tensors:
    """A UNet's weights under the names of the first code."""
    layers = json.loads((folder / "config.json").read_text())["layers_per_block"]
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    attended = {name.split(".attentions.")[0] for name in weights if ".attentions." in name}

    def renamed(name: str) -> str:
        if match := re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name):
            side, block, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
            place = (layers + 1) * block + layer + (side == "down")
            if kind == "downsamplers":
                return f"input_blocks.{(layers + 1) * (block + 1)}.0.op.{rest.removeprefix('conv.')}"
            if kind == "upsamplers":
                within = 2 if f"up_blocks.{block}" in attended else 1
                return f"output_blocks.{(layers + 1) * block + layers}.{within}.{rest}"
            blocks = "input_blocks" if side == "down" else "output_blocks"
            return f"{blocks}.{place}.{_resnet(rest, 0) if kind == 'resnets' else f'1.{rest}'}"
        if match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
            if match[1] == "attentions":
                return f"middle_block.1.{match[3]}"
            return f"middle_block.{_resnet(match[3], 2 * int(match[2]))}"
        module, _, kind = name.rpartition(".")
        return f"{UNET_NAMES[module]}.{kind}"

    return {renamed(name): tensor for name, tensor in weights.items()}


def ldm_vae(folder: Path) -> Tensors:
    """A VAE's weights under the names of the first code, its attention as convolutions."""
    last = len(json.loads((folder / "config.json").read_text())["block_out_channels"]) - 1
    found = {}
    for name, tensor in load_file(folder / "diffusion_pytorch_model.safetensors").items():
        new = name
        for theirs, ours in VAE_NAMES.items():
            new = re.sub(rf"\b{re.escape(theirs)}\b", ours, new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", new)
        new = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", new)
        new = re.sub(r"up_blocks\.(\d)\.resnets", lambda match: f"up.{last - int(match[1])}.block", new)
        new = re.sub(r"down_blocks\.(\d)", r"down.\1", new)
        new = re.sub(r"up_blocks\.(\d)", lambda match: f"up.{last - int(match[1])}", new)
        found[new] = tensor[:, :, None, None] if "attn_1" in new and tensor.dim() == 2 else tensor
    return found


def save_to_cache(cache: Path, folder: Path, repository: str, revision: str = "main", commit: str = COMMIT) -> Path:
    """A folder as a snapshot in the hub's local cache, as huggingface_hub leaves it."""
    home = cache / f"models--{repository.replace('/', '--')}"
    snapshot = home / "snapshots" / commit
    for file in (each for each in folder.rglob("*") if each.is_file()):
        blob = home / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(file.read_bytes())
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / revision).write_text(commit)
    return snapshot


def _resnet(rest: str, place: int) -> str:
    module, _, kind = rest.partition(".")
    return f"{place}.{RESNET_NAMES[module]}.{kind}"


def _text_model(weights: Tensors) -> Tensors:
    return {name.removeprefix("text_model."): tensor for name, tensor in weights.items()}


def _with_last_layer(weights: Tensors) -> Tensors:
    """With the layer that Stable Diffusion 2 has and does not use."""
    first = "transformer.resblocks.0."
    last = {name.replace(".0.", ".23.", 1): each + 1 for name, each in weights.items() if name.startswith(first)}
    return weights | last


def _open_clip(weights: Tensors) -> Tensors:
    found: Tensors = {}
    for name, tensor in weights.items():
        new = name
        for theirs, ours in OPEN_CLIP_NAMES.items():
            new = new.replace(theirs, ours)
        if match := re.match(r"(.*\.attn)\.q_proj\.(weight|bias)", new):
            parts = [weights[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            found[f"{match[1]}.in_proj_{match[2]}"] = torch.cat(parts)
        elif not re.search(r"[kv]_proj", new):
            found[new] = tensor.T if new == "text_projection" else tensor
    return found
