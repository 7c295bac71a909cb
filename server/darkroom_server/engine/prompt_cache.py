"""LRU cache of prompt embeddings."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

from darkroom_plugins import calls
from darkroom_plugins.contract import Adapter, PromptKey
from darkroom_plugins.sample import PromptEmbedding, Sample
from darkroom_server.engine.recovery import Recovery

ENCODED_AT_ONCE = 16  # prompts
CAPACITY_BYTES = 64 * 2**20  # an embedding of SD 1.5 has 118 KB in half precision


class PromptCache:
    """Embeddings by model, prompt and adapters of the text encoders, with LRU eviction."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Hashable, PromptEmbedding] = OrderedDict()
        self._bytes = 0

    @property
    def held_bytes(self) -> int:
        """Of the embeddings. May be called on another thread."""
        return self._bytes

    def rows(self, sample: Sample, keys: Sequence[PromptKey]) -> tuple[PromptEmbedding, ...]:
        """The embedding of each row of this sample."""
        adapter_keys = _adapter_keys(sample)
        return tuple(self._embedding(sample, key, adapter_keys) for key in keys)

    def fetch(self, wanted: Sequence[tuple[Sample, Sequence[PromptKey]]], recovery: Recovery) -> None:
        """Encode in batches the prompts of these samples that are not cached. A failure here is ignored: `rows` tries
        again, and raises it for its own sample."""
        missing: dict[Hashable, dict[Hashable, tuple[Sample, PromptKey]]] = {}
        for sample, keys in wanted:
            adapter_keys = _adapter_keys(sample)
            for key in keys if not sample.request.deterministic else ():
                cache_key = _cache_key(sample, key, adapter_keys)
                if cache_key not in self._entries:
                    missing.setdefault((sample.request.model, adapter_keys), {})[cache_key] = sample, key
        for group in missing.values():
            request = next(iter(group.values()))[0].request
            texts = [*group.values()]
            found = recovery.each(("text", request.model), _encode, texts, ENCODED_AT_ONCE)
            for cache_key, embedding in zip(group, found, strict=True):
                if isinstance(embedding, PromptEmbedding):
                    self._keep(cache_key, embedding)

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._entries)

    def clear(self) -> None:
        """Evict all, to free memory."""
        self._entries.clear()
        self._bytes = 0

    def _embedding(self, sample: Sample, key: PromptKey, adapter_keys: Hashable) -> PromptEmbedding:
        cache_key = _cache_key(sample, key, adapter_keys)
        if cache_key not in self._entries:
            (made,) = _encode([(sample, key)])
            self._keep(cache_key, made)
        self._entries.move_to_end(cache_key)
        return self._entries[cache_key]

    def _keep(self, cache_key: Hashable, embedding: PromptEmbedding) -> None:
        self._entries[cache_key] = embedding
        self._bytes += embedding.hidden.nbytes
        while self._bytes > CAPACITY_BYTES and len(self._entries) > 1:
            self._bytes -= self._entries.popitem(last=False)[1].hidden.nbytes


def _adapter_keys(sample: Sample) -> Hashable:
    """Identify the adapters' changes to the text encoders for this sample."""
    return tuple((adapter.name, _key(adapter, sample)) for adapter in sample.adapters)


def _key(adapter: Adapter, sample: Sample) -> Hashable:
    with calls.calling(adapter, "prompt_key"):
        return adapter.prompt_key(sample.request, calls.parameters_of(adapter, sample.request))


def _cache_key(sample: Sample, key: PromptKey, adapter_keys: Hashable) -> Hashable:
    # Embeddings from a batch differ in the last bit from those encoded alone.
    return sample.request.model, key, adapter_keys, sample.request.deterministic


def _encode(texts: Sequence[tuple[Sample, PromptKey]]) -> list[PromptEmbedding]:
    """The embeddings of prompts, in one batch; all their samples have equal `_adapter_keys`."""
    sample = texts[0][0]
    with calls.encoding(sample), calls.calling(sample.model, "encode_prompts", timed=False):
        return sample.model.encode_prompts([key for _, key in texts])
