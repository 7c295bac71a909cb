"""Keys and values of a UNet's cross-attention. They are products of the prompt alone, the same at each evaluation: on a
CPU, where small pictures spend a tenth of an evaluation on them, each prompt's are made once."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from weakref import WeakKeyDictionary

import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from darkroom_plugins.sample import Evaluation, PromptEmbedding

KEPT_BYTES = 2**26  # of the prompts used last; with more of them in one batch than that, all is done as usual


class Given:
    """Stands in the place of a layer's forward where it is known what the layer makes. A network whose own forward is
    replaced does as it says only where that says so, by an attribute `minds_given`."""

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value

    def __call__(self, *_: object) -> torch.Tensor:
        return self.value


class Projections:
    """The keys and values of prompts, for one UNet."""

    def __init__(self, unet: nn.Module) -> None:
        attentions = [each for each in unet.modules() if isinstance(each, Attention) and each.is_cross_attention]
        plain = all(not each.norm_cross and each.added_kv_proj_dim is None for each in attentions)
        plain = plain and getattr(unet, "encoder_hid_proj", None) is None  # else they are not of the prompt as it is
        self._layers = [layer for each in attentions for layer in (each.to_k, each.to_v)] if plain else []
        self._kept: OrderedDict[int, tuple[PromptEmbedding, list[torch.Tensor]]] = OrderedDict()  # by identity

    @contextlib.contextmanager
    def given(self, prompts: Sequence[PromptEmbedding]) -> Iterator[None]:
        """A context in which the UNet takes the keys and values of these rows from here."""
        capacity = KEPT_BYTES // max(1, self._bytes(prompts[0]))
        if not self._layers or len({id(each) for each in prompts}) > capacity or any(map(_changed, self._layers)):
            yield
            return
        rows = [self._of(prompt) for prompt in prompts]
        while len(self._kept) > capacity:
            self._kept.popitem(last=False)
        for layer, parts in zip(self._layers, zip(*rows, strict=True), strict=True):
            vars(layer)["forward"] = Given(torch.cat(parts))
        try:
            yield
        finally:
            for layer in self._layers:
                del vars(layer)["forward"]

    def _of(self, prompt: PromptEmbedding) -> list[torch.Tensor]:
        """Of each layer, (1, tokens, width)."""
        if id(prompt) not in self._kept:
            self._kept[id(prompt)] = prompt, [layer(prompt.hidden) for layer in self._layers]
        self._kept.move_to_end(id(prompt))
        return self._kept[id(prompt)][1]

    def _bytes(self, prompt: PromptEmbedding) -> int:
        widths = sum(layer.out_features for layer in self._layers)
        return widths * prompt.hidden.shape[1] * prompt.hidden.itemsize


def _changed(layer: nn.Module) -> bool:
    """Whether something else has a hand in it, as where weights come and go."""
    return "forward" in vars(layer) or bool(layer._forward_pre_hooks) or bool(layer._forward_hooks)


_known: WeakKeyDictionary[nn.Module, Projections] = WeakKeyDictionary()


def projected(unet: nn.Module, evaluation: Evaluation) -> contextlib.AbstractContextManager[None]:
    """A context for an evaluation of the UNet."""
    prompts = [row.prompt for row in evaluation.rows]
    if (
        evaluation.prompts.device.type != "cpu"
        or not getattr(
            unet.forward, "minds_given", "forward" not in vars(unet)
        )  # as compiled code, with its own layers
        or any(row.sample.adapters for row in evaluation.rows)  # which may have changed the weights for this evaluation
        or not torch.equal(evaluation.prompts, torch.cat([each.hidden for each in prompts]))  # by a conditioner
    ):
        return contextlib.nullcontext()
    if unet not in _known:
        _known[unet] = Projections(unet)
    return _known[unet].given(prompts)
