"""The layers of a UNet or ControlNet that see one vector a row, its timestep's embedding, computed in row buckets.

Matrix products of so few rows take other kernels for one, two and more rows, in which a row's last bits differ; those
of all other layers have many positions a row. Computed aside for each row, in a bucket of copies, they no longer make
the bytes of an evaluation depend on its number of rows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from darkroom_plugins.sample import Evaluation

MAX_BYTES = 2**24  # of the timesteps used last


class TimeLayers:
    """The projections of one network; by timestep the least recently used are dropped."""

    def __init__(self, network: Any) -> None:
        self._network = network.__dict__  # not the network itself, which is the key of a weak dictionary
        blocks = [each for each in network.modules() if isinstance(each, ResnetBlock2D) and each.time_emb_proj]
        self._added = network.config.addition_embed_type
        plain = network.class_embedding is None and getattr(network, "time_embed_act", None) is None
        self._blocks = blocks if plain and self._added in (None, "text_time") else []
        self._widths = [each.time_emb_proj.out_features for each in blocks]
        self._cached: OrderedDict[tuple[float, int], torch.Tensor] = OrderedDict()

    def fixed(self, evaluation: Evaluation, condition: torch.Tensor | None, added: Mapping[str, Any]) -> dict[Any, Any]:
        """By layer: (rows, width). Empty where the layers are patched."""
        if not self._blocks or self._patched:
            return {}
        joined = torch.cat([self._row(evaluation, index, condition, added) for index in range(len(evaluation.rows))])
        layers = (block.time_emb_proj for block in self._blocks)
        return dict(zip(layers, joined.split(self._widths, dim=1), strict=True))

    def _module(self, name: str) -> Any:
        return self._network["_modules"][name]

    @property
    def _patched(self) -> bool:
        """Whether layers are replaced or adapted. Hooks before a layer, which come and go, do not change it."""
        tops = [self._module("time_embedding"), *(block.time_emb_proj for block in self._blocks)]
        tops += [self._module("add_embedding")] if self._added else []
        return any("forward" in vars(each) or each._forward_hooks for top in tops for each in top.modules())

    def _row(
        self, evaluation: Evaluation, index: int, condition: torch.Tensor | None, added: Mapping[str, Any]
    ) -> torch.Tensor:
        """(1, width of all layers)."""
        bucket = evaluation.bucket
        inputs = [evaluation.timesteps, condition, *(added.get("added_cond_kwargs") or {}).values()]
        if any(each is not None for each in inputs[1:]):
            return self._projected(evaluation, index, condition, added)
        key = float(evaluation.rows[index].sample.timestep), bucket
        if key not in self._cached:
            self._cached[key] = self._projected(evaluation, index, None, {})
            while len(self._cached) * self._cached[key].nbytes > MAX_BYTES:
                self._cached.popitem(last=False)
        self._cached.move_to_end(key)
        return self._cached[key]

    def _projected(
        self, evaluation: Evaluation, index: int, condition: torch.Tensor | None, added: Mapping[str, Any]
    ) -> torch.Tensor:
        """As in the forward of UNet2DConditionModel and ControlNetModel, on a bucket of copies of one row."""

        def copies(tensor: torch.Tensor) -> torch.Tensor:
            return tensor[index : index + 1].expand(evaluation.bucket, *tensor.shape[1:]).contiguous()

        dtype = evaluation.latents.dtype
        times = self._module("time_proj")(copies(evaluation.timesteps)).to(dtype)
        hidden = self._module("time_embedding")(times, None if condition is None else copies(condition))
        if self._added:
            texts, ids = (copies(added["added_cond_kwargs"][name]) for name in ("text_embeds", "time_ids"))
            sizes = self._module("add_time_proj")(ids.flatten()).reshape(evaluation.bucket, -1)
            hidden = hidden + self._module("add_embedding")(torch.concat([texts, sizes], dim=-1).to(hidden.dtype))
        outputs = [
            block.time_emb_proj(hidden if block.skip_time_act else block.nonlinearity(hidden))[:1]
            for block in self._blocks
        ]
        return torch.cat(outputs, dim=1)


_layers: WeakKeyDictionary[nn.Module, TimeLayers] = WeakKeyDictionary()


def time_outputs(
    network: Any, evaluation: Evaluation, added: Mapping[str, Any], condition: torch.Tensor | None = None
) -> dict[nn.Module, torch.Tensor]:
    """For `with_fixed_outputs`: the time layers' outputs, (rows, width) by layer, of a deterministic evaluation on a
    CPU; empty for others. `added` and `condition` are the forward's `added_cond_kwargs`, by this name, and
    `timestep_cond`."""
    if not evaluation.bucket or evaluation.latents.device.type != "cpu":
        return {}
    if network not in _layers:
        _layers[network] = TimeLayers(network)
    return _layers[network].fixed(evaluation, condition, added)
