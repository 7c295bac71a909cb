"""Keys and values of a UNet's cross-attention. They are products of the prompt alone, the same at each evaluation: on a
CPU, where small pictures spend a tenth of an evaluation on them, each prompt's are made once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from weakref import WeakKeyDictionary

import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from darkroom_plugins.fixed_outputs import is_patched, with_fixed_outputs
from darkroom_plugins.sample import BatchCache, Evaluation, PromptEmbedding, own_prompts

# Of the prompts that came last, and as much of each batch; with more of them in one batch, all is done as usual.
KEPT_BYTES = 2**26


class Projections:
    """The keys and values of prompts, for one UNet."""

    def __init__(self, unet: nn.Module) -> None:
        attentions = [each for each in unet.modules() if isinstance(each, Attention) and each.is_cross_attention]
        plain = all(not each.norm_cross and each.added_kv_proj_dim is None for each in attentions)
        plain = plain and getattr(unet, "encoder_hid_proj", None) is None  # else they are not of the prompt as it is
        self._layers = [layer for each in attentions for layer in (each.to_k, each.to_v)] if plain else []
        self._kept: OrderedDict[int, tuple[PromptEmbedding, list[torch.Tensor]]] = OrderedDict()  # by identity

    def given(self, prompts: Sequence[PromptEmbedding], batch_cache: BatchCache) -> AbstractContextManager[None]:
        """A context in which the UNet takes the keys and values of these rows from here."""
        capacity = self._capacity(prompts)
        if not self._layers or len({id(each) for each in prompts}) > capacity or any(map(is_patched, self._layers)):
            return nullcontext()
        keeping = len(prompts) <= capacity  # else those of the whole batch would be too much
        return with_fixed_outputs(
            batch_cache.get_or_make(self, self._of_all, prompts) if keeping else self._of_all(prompts)
        )

    def _of_all(self, prompts: Sequence[PromptEmbedding]) -> dict[nn.Module, torch.Tensor]:
        """Of each layer, (prompts, tokens, width)."""
        rows = [self._of(prompt) for prompt in prompts]
        while len(self._kept) > self._capacity(prompts):
            self._kept.popitem(last=False)
        return {layer: torch.cat(parts) for layer, parts in zip(self._layers, zip(*rows, strict=True), strict=True)}

    def _of(self, prompt: PromptEmbedding) -> list[torch.Tensor]:
        """Of each layer, (1, tokens, width)."""
        if id(prompt) not in self._kept:
            self._kept[id(prompt)] = prompt, [layer(prompt.hidden) for layer in self._layers]
        self._kept.move_to_end(id(prompt))
        return self._kept[id(prompt)][1]

    def _capacity(self, prompts: Sequence[PromptEmbedding]) -> int:
        """How many such prompts have room."""
        widths = sum(layer.out_features for layer in self._layers)
        hidden = prompts[0].hidden
        return KEPT_BYTES // max(1, widths * hidden.shape[1] * hidden.itemsize)


_known: WeakKeyDictionary[nn.Module, Projections] = WeakKeyDictionary()


def projected(unet: nn.Module, evaluation: Evaluation) -> AbstractContextManager[None]:
    """A context for an evaluation of the UNet."""
    prompts = [row.prompt for row in evaluation.rows]
    if (
        evaluation.prompts.device.type != "cpu"
        or not getattr(
            unet.forward, "supports_fixed_outputs", "forward" not in vars(unet)
        )  # as compiled code, with its own layers
        or any(row.sample.adapters for row in evaluation.rows)  # which may have changed the weights for this evaluation
        or evaluation.prompts is not own_prompts(evaluation.rows, evaluation.batch_cache)  # but a conditioner's
    ):
        return nullcontext()
    if unet not in _known:
        _known[unet] = Projections(unet)
    return _known[unet].given(prompts, evaluation.batch_cache)
