"""ControlNet (Zhang et al. 2023): residuals for the denoiser from a control map."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from darkroom_plugins import hookimpl
from darkroom_plugins.contract import AssetInfo, AssetKind, Conditioner, Family
from darkroom_plugins.deferred import torch
from darkroom_plugins.files import (
    MetaNetwork,
    load_weights,
    meta_network,
    read_json,
    read_shapes,
    read_tensors,
    weight_files,
)
from darkroom_plugins.fixed_outputs import with_fixed_outputs
from darkroom_plugins.latents import to_tensor
from darkroom_plugins.request import ControlChoice, Request
from darkroom_plugins.sample import Evaluation, Row, Sample
from darkroom_plugins.tensors import constant, to_device

darkroom_api_version = 1

CLASS = "ControlNetModel"
SHAPE_KEYS = ("cross_attention_dim", "block_out_channels", "layers_per_block", "addition_embed_type")
Residuals: TypeAlias = "list[torch.Tensor]"  # of the down blocks, then of the mid block


@dataclass(frozen=True, slots=True)
class Control:
    """A ControlNet with its control map, for one sample."""

    choice: ControlChoice
    network: Any
    embedding: torch.Tensor  # (1, channels, h, w): of the map, the same at each evaluation


class ControlNets(Conditioner):
    """Adds each ControlNet's residuals to the denoiser's skip connections, row by row (diffusers'
    StableDiffusionControlNetPipeline and MultiControlNetModel). Rows without a ControlNet get zeros."""

    name = "controlnet"
    description = "Lets pictures follow edges, depths, poses and other maps."
    asset_kind: AssetKind = "controlnet"  # type: ignore[misc]

    def wants(self, request: Request, parameters: None) -> bool:
        return any(choice.scale > 0 for choice in request.controls)

    def describe_asset(self, path: Path) -> AssetInfo:
        files = weight_files(path)
        _network(path).check(read_shapes(files))
        return AssetInfo(components=("unet",), weight_bytes=sum(file.stat().st_size for file in files))

    def incompatibility(self, path: Path, model: Family) -> str | None:
        if "unet" not in model.meta_components:
            return "it steers a UNet, which the model does not have"
        theirs, ours = _network(path).config, model.config("unet")
        for key in SHAPE_KEYS:
            if _plain(theirs.get(key)) != _plain(ours.get(key)):
                return f"it was made for a model whose {key} is {theirs.get(key)}, not {ours.get(key)}"
        latents, _, width = model.latent_shape(model.info.default_width, model.info.default_height)
        if (theirs.get("in_channels", 4), theirs.get("conditioning_channels", 3)) != (latents, 3):
            return f"it does not take latents of {latents} channels and maps of 3"
        factor = 2 ** (len(theirs.get("conditioning_embedding_out_channels", (16, 32, 96, 256))) - 1)
        if width * factor != model.info.default_width:
            return f"it was made for a model whose pictures are {factor} times as wide as their latents"
        return None

    def load_asset(self, path: Path, model: Family) -> Any:
        network = _network(path).network
        load_weights(network, read_tensors(weight_files(path)), model.dtype, model.device)
        return network.to(model.device)

    def begin(self, sample: Sample, parameters: None) -> None:
        model = sample.model
        sample.state[self.name] = [
            Control(
                choice,
                network,
                _map_embedding(network, to_device(to_tensor(pixels).to(model.dtype), model.device), sample.bucket or 1),
            )
            for choice, pixels in zip(sample.request.controls, sample.controls, strict=True)
            if choice.scale > 0
            for network in [sample.assets.get("controlnet", choice.model)]
        ]

    def company(self, row: Row) -> Hashable:
        return tuple(control.choice.model for control in self._active(row))

    def condition(self, evaluation: Evaluation, parameters: Sequence[None]) -> None:
        model, device = evaluation.rows[0].sample.model, evaluation.latents.device
        parts: list[tuple[torch.Tensor, Residuals]] = []
        for network, wanted in self._by_network(evaluation).items():
            indices, controls = [index for index, _ in wanted], [control for _, control in wanted]
            residuals = _run(network, evaluation.select(indices), controls, model)
            parts.append((constant(indices, device), _scale_residuals(residuals, network, controls)))
        if parts:
            evaluation.add_residuals(_sum_residuals(parts, len(evaluation.rows)))

    def _by_network(self, evaluation: Evaluation) -> dict[Any, list[tuple[int, Control]]]:
        """The rows of each ControlNet that is active at this evaluation, by index."""
        found: dict[Any, list[tuple[int, Control]]] = {}
        for index, row in enumerate(evaluation.rows):
            for control in self._active(row):
                found.setdefault(control.network, []).append((index, control))
        return found

    def _active(self, row: Row) -> Iterator[Control]:
        for control in row.sample.state.get(self.name, ()):
            choice = control.choice
            active = row.sample.within(choice.start, choice.end)
            if active and not (row.unconditional and _conditional_only(control)):
                yield control


def _sum_residuals(parts: Sequence[tuple[torch.Tensor, Residuals]], rows: int) -> Residuals:
    """The sum of all ControlNets' residuals, (rows, channels, h, w) by block; pooled ones (1 x 1) are broadcast."""
    total = []
    for place in zip(*(residuals for _, residuals in parts), strict=True):
        largest = max(place, key=lambda each: each[0].numel())
        total.append(largest.new_zeros(rows, *largest.shape[1:]))
    for where, residuals in parts:
        for sum_, each in zip(total, residuals, strict=True):
            sum_.index_add_(0, where, each.expand(-1, *sum_.shape[1:]))
    return total


def _conditional_only(control: Control) -> bool:
    return control.choice.guess_mode or bool(control.network.config.global_pool_conditions)


def _map_embedding(network: Any, pixels: torch.Tensor, copies: int) -> torch.Tensor:
    """The network's embedding of a map, (1, 3, height, width) in 0 to 1. It is the first of so many copies': diffusers'
    pipelines embed one for each row, and the number of rows changes the last bits."""
    if network.config.controlnet_conditioning_channel_order == "bgr":
        pixels = pixels.flip(1)
    return network.controlnet_cond_embedding(pixels.expand(copies, -1, -1, -1))[:1]  # type: ignore[no-any-return]


def _run(network: Any, part: Evaluation, controls: Sequence[Control], model: Family) -> Residuals:
    from darkroom_plugins.builtin.families.time_layers import time_outputs

    embeddings = torch.cat([control.embedding for control in controls])  # too large to cache for the batch
    added = model.added_conditions(part)
    fixed = {network.controlnet_cond_embedding: embeddings, **time_outputs(network, part, added)}
    with with_fixed_outputs(fixed):
        down, middle = network(
            part.latents,
            part.timesteps,
            encoder_hidden_states=part.prompts,
            controlnet_cond=embeddings,
            return_dict=False,
            **added,
        )
    return [*down, middle]


def _scale_residuals(residuals: Residuals, network: Any, controls: Sequence[Control]) -> Residuals:
    """Each row's residuals times its scale, in guess mode from 0.1 at the first block to 1 at the mid block: as
    ControlNetModel.forward, which has one scale and mode for all rows."""
    pooled, count = network.config.global_pool_conditions, len(residuals)
    scales = torch.ones(len(controls), count)
    for row, choice in zip(scales, (control.choice for control in controls), strict=True):
        row *= choice.scale * (torch.logspace(-1, 0, count) if choice.guess_mode and not pooled else 1)
    pairs = zip(residuals, constant(scales.T.flatten().tolist(), residuals[0].device).chunk(count), strict=True)
    return [(each * scale.view(-1, 1, 1, 1)).to(each) for each, scale in pairs]  # scaled in float32


def _network(path: Path) -> MetaNetwork:
    config = _config(path)
    return MetaNetwork(CLASS, config, lambda: _made(config))


def _made(config: Mapping[str, Any]) -> torch.nn.Module:
    from diffusers import ControlNetModel

    return meta_network(ControlNetModel, config)


def _config(path: Path) -> dict[str, Any]:
    config = read_json(path / "config.json")
    if config.get("_class_name") != CLASS:
        raise ValueError(f"it is a {config.get('_class_name', 'network of no named class')}, not a {CLASS}")
    return config


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@hookimpl
def darkroom_conditioners() -> Sequence[Conditioner]:
    return [ControlNets()]
