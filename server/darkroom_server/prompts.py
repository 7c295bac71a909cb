"""Keeps prompt embeddings, so that a prompt that comes again is not encoded again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from darkroom_plugins.request import Request
from darkroom_plugins.sample import PromptEmbedding
from darkroom_server.models import Model

KEPT = 256  # embeddings; one of SD 1.5 has 118 KB in half precision


class PromptCache:
    """The embeddings used last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, PromptEmbedding] = OrderedDict()

    def rows(self, model: Model, request: Request) -> tuple[PromptEmbedding, ...]:
        """What each row of a sample of this request is conditioned on."""
        return tuple(self._embedding(model, key) for key in model.loaded.prompt_keys(request))

    def _embedding(self, model: Model, key: Hashable) -> PromptEmbedding:
        found = self._kept.pop((model.name, key), None) or model.loaded.encode_prompt(key)
        self._kept[(model.name, key)] = found
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return found
