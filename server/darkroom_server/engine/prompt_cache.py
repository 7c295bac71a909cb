"""Keeps prompt embeddings, so that a prompt that comes again is not encoded again."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Hashable, Sequence

from darkroom_plugins import calls
from darkroom_plugins.contract import Adapter, PromptKey
from darkroom_plugins.sample import PromptEmbedding, Sample
from darkroom_server.engine.recovery import Recovery

ENCODED_AT_ONCE = 16  # prompts
KEPT_BYTES = 64 * 2**20  # an embedding of SD 1.5 has 118 KB in half precision


class PromptCache:
    """The embeddings used last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, PromptEmbedding] = OrderedDict()
        self._bytes = 0

    def rows(self, sample: Sample, keys: Sequence[PromptKey]) -> tuple[PromptEmbedding, ...]:
        """What each row of this sample is conditioned on."""
        changes = _changes(sample)
        return tuple(self._embedding(sample, key, changes) for key in keys)

    def fetch(self, wanted: Sequence[tuple[Sample, Sequence[PromptKey]]], recovery: Recovery) -> None:
        """Encode together what `rows` will want of these samples. What fails here is left to `rows`, which says why."""
        missing: dict[Hashable, dict[Hashable, tuple[Sample, PromptKey]]] = {}
        for sample, keys in wanted:
            changes = _changes(sample)
            for key in keys if not sample.request.deterministic else ():
                whole = _whole(sample, key, changes)
                if whole not in self._kept:
                    missing.setdefault((sample.request.model, changes), {})[whole] = sample, key
        for group in missing.values():
            request = next(iter(group.values()))[0].request
            texts = [*group.values()]
            found = recovery.each(("text", request.model), _encode, texts, ENCODED_AT_ONCE)
            for whole, embedding in zip(group, found, strict=True):
                if isinstance(embedding, PromptEmbedding):
                    self._keep(whole, embedding)

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._kept)

    def clear(self) -> None:
        """Keep none: memory is short."""
        self._kept.clear()
        self._bytes = 0

    def _embedding(self, sample: Sample, key: PromptKey, changes: Hashable) -> PromptEmbedding:
        whole = _whole(sample, key, changes)
        if whole not in self._kept:
            (made,) = _encode([(sample, key)])
            self._keep(whole, made)
        self._kept.move_to_end(whole)
        return self._kept[whole]

    def _keep(self, whole: Hashable, embedding: PromptEmbedding) -> None:
        self._kept[whole] = embedding
        self._bytes += embedding.hidden.nbytes
        while self._bytes > KEPT_BYTES and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].hidden.nbytes


def _changes(sample: Sample) -> Hashable:
    """What adapters change in the text encoders for this sample."""
    return tuple((adapter.name, _key(adapter, sample)) for adapter in sample.adapters)


def _key(adapter: Adapter, sample: Sample) -> Hashable:
    with calls.calling(adapter, "prompt_key"):
        return adapter.prompt_key(sample.request, calls.parameters_of(adapter, sample.request))


def _whole(sample: Sample, key: PromptKey, changes: Hashable) -> Hashable:
    # One that was encoded among others is not the same to the last bit.
    return sample.request.model, key, changes, sample.request.deterministic


def _encode(texts: Sequence[tuple[Sample, PromptKey]]) -> list[PromptEmbedding]:
    """The embeddings of keys of samples for which adapters change the same."""
    sample = texts[0][0]
    with contextlib.ExitStack() as adapted:
        for adapter in sample.adapters:
            with calls.calling(adapter, "encoding"):
                context = adapter.encoding(sample, calls.parameters_of(adapter, sample.request))
                adapted.enter_context(context)
        with calls.calling(sample.model, "encode_prompts", timed=False):
            return sample.model.encode_prompts([key for _, key in texts])
