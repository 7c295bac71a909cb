"""transformers' CLIP text encoders, and the safety checker, which sees by CLIP."""

from __future__ import annotations

from darkroom_plugins.files.structures.network import Config, Kinds, Network

TEXT: Config = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
}
VISION: Config = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
}


def _clip_text(network: Network, config: Config) -> None:
    _clip_layers(network, "text_model", config)
    network["text_model.embeddings.token_embedding.weight"] = (config["vocab_size"], config["hidden_size"])
    network["text_model.embeddings.position_embedding.weight"] = (
        config["max_position_embeddings"],
        config["hidden_size"],
    )
    network.norm("text_model.final_layer_norm", config["hidden_size"])


def _clip_text_with_projection(network: Network, config: Config) -> None:
    _clip_text(network, config)
    network.linear("text_projection", config["hidden_size"], config["projection_dim"], bias=False)


def _clip_layers(network: Network, name: str, config: Config) -> None:
    width, inner = config["hidden_size"], config["intermediate_size"]
    if width % config["num_attention_heads"]:
        raise ValueError("the heads do not divide the width")
    for place in range(config["num_hidden_layers"]):
        layer = f"{name}.encoder.layers.{place}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            network.linear(f"{layer}.self_attn.{part}", width, width)
        network.norm(f"{layer}.layer_norm1", width)
        network.norm(f"{layer}.layer_norm2", width)
        network.linear(f"{layer}.mlp.fc1", width, inner)
        network.linear(f"{layer}.mlp.fc2", inner, width)


def _safety_checker(network: Network, config: Config) -> None:
    vision = {**VISION, **(config["vision_config"] or {}), **(config["vision_config_dict"] or {})}
    width, size, name = vision["hidden_size"], vision["patch_size"], "vision_model.vision_model"
    _clip_layers(network, name, vision)
    network[f"{name}.embeddings.class_embedding"] = (width,)
    network.conv(f"{name}.embeddings.patch_embedding", vision["num_channels"], width, size, bias=False)
    network[f"{name}.embeddings.position_embedding.weight"] = ((vision["image_size"] // size) ** 2 + 1, width)
    network.norm(f"{name}.pre_layrnorm", width)
    network.norm(f"{name}.post_layernorm", width)
    network.linear("visual_projection", width, config["projection_dim"], bias=False)
    for count, concepts in ((17, "concept"), (3, "special_care")):
        network[f"{concepts}_embeds"] = (count, config["projection_dim"])
        network[f"{concepts}_embeds_weights"] = (count,)


KINDS: Kinds = {
    "CLIPTextModel": (_clip_text, TEXT),
    "CLIPTextModelWithProjection": (_clip_text_with_projection, TEXT),
    "StableDiffusionSafetyChecker": (
        _safety_checker,
        {"projection_dim": 512, "vision_config": None, "vision_config_dict": None},
    ),
}
