"""Keeps prompt embeddings, so that a prompt that comes again is not encoded again."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Hashable, Sequence

from darkroom_plugins.contract import PromptKey
from darkroom_plugins.sample import PromptEmbedding, Sample

KEPT_BYTES = 64 * 2**20  # an embedding of SD 1.5 has 118 KB in half precision


class PromptCache:
    """The embeddings used last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, PromptEmbedding] = OrderedDict()
        self._bytes = 0

    def rows(self, sample: Sample, keys: Sequence[PromptKey]) -> tuple[PromptEmbedding, ...]:
        """What each row of this sample is conditioned on."""
        changes = tuple((adapter.name, adapter.prompt_key(sample.request)) for adapter in sample.adapters)
        return tuple(self._embedding(sample, key, changes) for key in keys)

    def clear(self) -> None:
        """Keep none: memory is short."""
        self._kept.clear()
        self._bytes = 0

    def _embedding(self, sample: Sample, key: PromptKey, changes: Hashable) -> PromptEmbedding:
        whole = (sample.request.model, key, changes)
        if whole in self._kept:
            self._kept.move_to_end(whole)
            return self._kept[whole]
        found = self._kept[whole] = _encode(sample, key)
        self._bytes += found.hidden.nbytes
        while self._bytes > KEPT_BYTES and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].hidden.nbytes
        return found


def _encode(sample: Sample, key: PromptKey) -> PromptEmbedding:
    with contextlib.ExitStack() as adapted:
        for adapter in sample.adapters:
            adapted.enter_context(adapter.encoding(sample))
        return sample.model.encode_prompt(key)
