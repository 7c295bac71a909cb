"""DeepCache (Ma et al. 2023, arXiv 2312.00858): the deep features of a UNet change little between neighbouring
evaluations. A full step runs all layers and caches these features; a cached step runs the shallow layers on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from darkroom_plugins.deferred import torch
from darkroom_plugins.sample import Evaluation, Row

if TYPE_CHECKING:
    from torch import nn

    from darkroom_plugins.builtin.families.deepcache_layers import Layers

DEPTH = 1  # shallow layers of the first down block, each with its skip connection to the last up block
MAX_INTERVAL = 20  # evaluations, the paper's maximum; it finds pictures close to the full network's up to 5


def max_interval(config: Any) -> int:
    """The greatest cache interval for a UNet of this configuration; 1 if it has too few layers to split."""
    layers = config["layers_per_block"]
    return MAX_INTERVAL if (layers if isinstance(layers, int) else layers[0]) >= DEPTH else 1


@dataclass(frozen=True, slots=True)
class DeepFeatures:
    """The deep features of a row."""

    evaluation: int  # index of the evaluation that made them
    tensor: torch.Tensor  # (1, channels, h, w)


def is_cached_step(row: Row) -> bool:
    """Whether the row's next evaluation is a cached step. Not if the features are of that same evaluation, run again
    after a failure."""
    cached = _features(row).get(row.unconditional)
    age = row.sample.evaluation - cached.evaluation if cached else 0
    return 0 < age < row.sample.request.cache_interval


def _features(row: Row) -> dict[bool, DeepFeatures]:
    """The deep features of the sample's rows, by `Row.unconditional`."""
    found: dict[bool, DeepFeatures] = row.sample.state.setdefault("deepcache", {})
    return found


_split: WeakKeyDictionary[nn.Module, Layers] = WeakKeyDictionary()


def denoise(unet: Any, evaluation: Evaluation, *args: Any, **kwargs: Any) -> torch.Tensor:
    """The UNet's output. The step is a cached one for all rows or a full one for all; a full step caches the features
    of rows with a cache interval."""
    if all(row.sample.request.cache_interval == 1 for row in evaluation.rows):
        return unet(*args, **kwargs)[0]  # type: ignore[no-any-return]
    if unet not in _split:
        from darkroom_plugins.builtin.families.deepcache_layers import Layers

        _split[unet] = Layers(unet, DEPTH)
    layers = _split[unet]
    if is_cached_step(evaluation.rows[0]):
        deep_features = torch.cat([_features(row)[row.unconditional].tensor for row in evaluation.rows])
        return layers.cached_step(unet, deep_features, *args, **kwargs)
    output, deep_features = layers.full_step(unet, *args, **kwargs)
    for row, features in zip(evaluation.rows, deep_features.split(1), strict=True):
        if row.sample.request.cache_interval > 1:
            # Cloned: a view would keep the whole batch's tensor in memory.
            _features(row)[row.unconditional] = DeepFeatures(row.sample.evaluation, features.clone())
    return output
