"""Keeps prompt embeddings, so that a prompt that comes again is not encoded again."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Hashable, Sequence

from darkroom_plugins.contract import PromptKey
from darkroom_plugins.sample import PromptEmbedding, Sample

KEPT = 256  # embeddings; one of SD 1.5 has 118 KB in half precision


class PromptCache:
    """The embeddings used last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, PromptEmbedding] = OrderedDict()

    def rows(self, sample: Sample, keys: Sequence[PromptKey]) -> tuple[PromptEmbedding, ...]:
        """What each row of this sample is conditioned on."""
        changes = tuple((adapter.name, adapter.prompt_key(sample.request)) for adapter in sample.adapters)
        return tuple(self._embedding(sample, key, changes) for key in keys)

    def _embedding(self, sample: Sample, key: PromptKey, changes: Hashable) -> PromptEmbedding:
        whole = (sample.request.model, key, changes)
        found = self._kept.pop(whole, None) or _encode(sample, key)
        self._kept[whole] = found
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return found


def _encode(sample: Sample, key: PromptKey) -> PromptEmbedding:
    with contextlib.ExitStack() as adapted:
        for adapter in sample.adapters:
            adapted.enter_context(adapter.encoding(sample))
        return sample.model.encode_prompt(key)
