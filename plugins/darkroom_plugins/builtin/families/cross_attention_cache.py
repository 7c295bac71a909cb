"""Cache of a UNet's cross-attention keys and values. They depend on the prompt embedding alone, thus are the same at
each evaluation. On a CPU they are a tenth of an evaluation of a small picture."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from weakref import WeakKeyDictionary

import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from darkroom_plugins.fixed_outputs import is_patched, with_fixed_outputs
from darkroom_plugins.sample import BatchCache, Evaluation, PromptEmbedding, own_prompts

# Of the prompts used last, and as much again for the batch. A batch with more distinct prompts is not cached.
MAX_BYTES = 2**26


class Projections:
    """Cross-attention keys and values of prompts, for one UNet, while somebody has the prompt's embedding; least
    recently used ones are dropped."""

    def __init__(self, unet: nn.Module) -> None:
        attentions = [each for each in unet.modules() if isinstance(each, Attention) and each.is_cross_attention]
        plain = all(not each.norm_cross and each.added_kv_proj_dim is None for each in attentions)
        plain = plain and getattr(unet, "encoder_hid_proj", None) is None  # it projects the prompt first
        self.layers = [layer for each in attentions for layer in (each.to_k, each.to_v)] if plain else []
        self.cached: WeakKeyDictionary[PromptEmbedding, list[torch.Tensor]] = WeakKeyDictionary()  # latest last

    def fixed(self, prompts: Sequence[PromptEmbedding], batch_cache: BatchCache) -> AbstractContextManager[None]:
        """Context manager: the UNet's key and value layers return the cached tensors of these rows."""
        capacity = self.capacity(prompts)
        if not self.layers or len({id(each) for each in prompts}) > capacity or any(map(is_patched, self.layers)):
            return nullcontext()
        cached = len(prompts) <= capacity  # the concatenated batch, too
        return with_fixed_outputs(
            batch_cache.get_or_make(self, self._of_all, prompts) if cached else self._of_all(prompts)
        )

    def _of_all(self, prompts: Sequence[PromptEmbedding]) -> dict[nn.Module, torch.Tensor]:
        """By layer: (prompts, tokens, width)."""
        rows = [self._of(prompt) for prompt in prompts]
        while len(self.cached) > self.capacity(prompts):
            del self.cached[next(iter(self.cached))]
        return {layer: torch.cat(parts) for layer, parts in zip(self.layers, zip(*rows, strict=True), strict=True)}

    def _of(self, prompt: PromptEmbedding) -> list[torch.Tensor]:
        """For each layer: (1, tokens, width)."""
        made = self.cached.pop(prompt, None) or [layer(prompt.hidden) for layer in self.layers]
        self.cached[prompt] = made
        return made

    def capacity(self, prompts: Sequence[PromptEmbedding]) -> int:
        """How many such prompts fit."""
        widths = sum(layer.out_features for layer in self.layers)
        hidden = prompts[0].hidden
        return MAX_BYTES // max(1, widths * hidden.shape[1] * hidden.itemsize)


_projections: WeakKeyDictionary[nn.Module, Projections] = WeakKeyDictionary()


def projected(unet: nn.Module, evaluation: Evaluation) -> AbstractContextManager[None]:
    """Context manager for one evaluation: the UNet takes cached keys and values, if applicable."""
    prompts = [row.prompt for row in evaluation.rows]
    if (
        evaluation.prompts.device.type != "cpu"
        or not getattr(
            unet.forward, "supports_fixed_outputs", "forward" not in vars(unet)
        )  # compiled: its layers are not called
        or any(row.sample.adapters for row in evaluation.rows)  # may change these layers
        or evaluation.prompts is not own_prompts(evaluation.rows, evaluation.batch_cache)  # changed by a conditioner
    ):
        return nullcontext()
    if unet not in _projections:
        _projections[unet] = Projections(unet)
    return _projections[unet].fixed(prompts, evaluation.batch_cache)
