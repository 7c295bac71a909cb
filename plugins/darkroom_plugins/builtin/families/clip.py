"""From texts to embeddings, by CLIP text encoders as Stable Diffusion and SDXL use them.

Tokens are made on the planner's thread, since tokenizers are not thread-safe; embeddings are made of them on the
engine's thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import torch

from darkroom_plugins.contract import Family, PromptReader
from darkroom_plugins.errors import InvalidRequest, Violation
from darkroom_plugins.request import Request
from darkroom_plugins.sample import PromptEmbedding, PromptPiece
from darkroom_plugins.tensors import to_device

MAX_CHUNKS = 16  # of one prompt, which are encoded at once
MAX_WEIGHT = 100.0  # of a word; more would soon leave the range of half precision


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """Vectors that stand in a prompt as words do (textual inversion, Gal et al. 2022)."""

    vectors: tuple[torch.Tensor, ...]  # for each text encoder: (n, width)


class Token(NamedTuple):
    """One position of a text encoder's input."""

    id: int
    weight: float = 1.0
    embedding: Embedding | None = None  # of which a vector stands here, whatever the id
    vector: int = 0  # which of its vectors


Encoded: TypeAlias = tuple[torch.Tensor, torch.Tensor | None]  # hidden states, projected state
Chunk: TypeAlias = tuple[Token, ...]  # what an encoder reads at once: BOS, tokens, EOS; padded when it is encoded


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an embedding depends on."""

    texts: tuple[tuple[Chunk, ...], ...]  # one a text encoder, of as many chunks each; none: an embedding of zeros
    clip_skip: int
    length: int  # tokens of the embedding
    warnings: tuple[str, ...] = ()


class ClipEncoder:
    """A text encoder with its tokenizer: the first or second of its model, by `index` 0 or 1."""

    def __init__(
        self, tokenizer: Any, model: Family, component: str, index: int = 0, penultimate: bool = False
    ) -> None:
        """With `penultimate` the last layer and the final norm are always left out, as SDXL does."""
        config: Any = model.meta_components[component].config
        self.length: int = min(tokenizer.model_max_length, config.max_position_embeddings)  # of a chunk
        self.width: int = config.hidden_size
        self.projected_width: int = config.projection_dim
        self._tokenizer, self._model, self._component = tokenizer, model, component
        self._index, self._penultimate = index, penultimate
        self._begin, self._end, self._pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id

    @property
    def _network(self) -> Any:
        return self._model.components[self._component]

    def cut(self, pieces: Sequence[PromptPiece]) -> tuple[tuple[Chunk, ...], tuple[str, ...]]:
        """One chunk of what fits into it, as diffusers' pipelines read a prompt, and a warning if that is not all."""
        room = self.length - 2
        tokens = [token for piece in pieces for token in self._tokens(piece)]
        chunks = (self._whole(tokens[:room]),)
        if len(tokens) <= room:
            return chunks, ()
        rest = self._tokenizer.decode([token.id for token in tokens[room:] if not token.embedding])[:200]
        problem = f"of a prompt of {len(tokens)} this was cut off: {rest!r}"
        return chunks, (f"the text encoder takes {room} tokens; {problem}",)

    def split(self, pieces: Sequence[PromptPiece]) -> tuple[Chunk, ...]:
        """As many chunks as it takes, as AUTOMATIC1111's web UI reads a prompt; an embedding stays in one of them
        where it can."""
        room = self.length - 2
        chunks: list[list[Token]] = [[]]
        for piece in pieces:
            tokens = self._tokens(piece)
            torn = piece.embedding is not None and len(chunks[-1]) + len(tokens) > room
            if piece.new_chunk or (torn and chunks[-1]):
                chunks.append([])
            for token in tokens:
                if len(chunks[-1]) == room:
                    chunks.append([])
                chunks[-1].append(token)
        if len(chunks) > 1 and not chunks[-1]:
            chunks.pop()
        return tuple(self._whole(chunk) for chunk in chunks)

    def padded(self, chunks: tuple[Chunk, ...], count: int) -> tuple[Chunk, ...]:
        """So many chunks, the last ones empty."""
        return chunks + (self._whole([]),) * (count - len(chunks))

    def _whole(self, tokens: Sequence[Token]) -> Chunk:
        return Token(self._begin), *tokens, Token(self._end)

    def _tokens(self, piece: PromptPiece) -> list[Token]:
        embedding: Embedding | None = piece.embedding
        if embedding is not None:
            # The id is read only where the EOS is looked for, by old models as the greatest id: 0 never is.
            return [Token(0, piece.weight, embedding, n) for n in range(len(embedding.vectors[self._index]))]
        ids = self._tokenizer(piece.text, add_special_tokens=False, verbose=False).input_ids
        return [Token(each, piece.weight) for each in ids]

    def encode(self, texts: Sequence[tuple[Chunk, ...]], skips: Sequence[int]) -> list[Encoded]:
        """Of each text the hidden states of all its chunks, (1, tokens, width), without so many last layers, and its
        first chunk's projected state, (1, width), of networks that make one."""
        chunks = [chunk for text in texts for chunk in text]
        paddings = [self.length - len(chunk) for chunk in chunks]
        ids = [[*(token.id for token in chunk), *[self._pad] * n] for chunk, n in zip(chunks, paddings, strict=True)]
        mask = [[1] * len(chunk) + [0] * n for chunk, n in zip(chunks, paddings, strict=True)]
        masked = getattr(self._network.config, "use_attention_mask", False)
        with self._inserted(chunks):
            output = self._network(
                to_device(torch.tensor(ids), self._model.device),
                attention_mask=to_device(torch.tensor(mask), self._model.device) if masked else None,
                output_hidden_states=True,
            )
        projected = getattr(output, "text_embeds", None)
        encoded, first = [], 0
        for text, skip in zip(texts, skips, strict=True):
            hidden = emphasised(self._layer(output, skip)[first : first + len(text)], text).flatten(0, 1)[None]
            encoded.append((hidden, projected[first : first + 1].clone() if projected is not None else None))
            first += len(text)
        return encoded

    def _layer(self, output: Any, clip_skip: int) -> torch.Tensor:
        if self._penultimate:
            return output.hidden_states[-(clip_skip + 2)]  # type: ignore[no-any-return]
        if clip_skip == 0:
            return output.last_hidden_state  # type: ignore[no-any-return]
        # Before version 5 of transformers the norm was one module deeper.
        norm = getattr(self._network, "text_model", self._network).final_layer_norm
        return norm(output.hidden_states[-(clip_skip + 1)])  # type: ignore[no-any-return]

    @contextmanager
    def _inserted(self, chunks: Sequence[Chunk]) -> Iterator[None]:
        """A context in which vectors of embeddings take the places of tokens; the table of tokens is never changed."""
        places = [(c, p, token) for c, chunk in enumerate(chunks) for p, token in enumerate(chunk) if token.embedding]

        def insert(_table: Any, _ids: Any, output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            for chunk, position, token in places:
                assert token.embedding is not None
                vector = token.embedding.vectors[self._index][token.vector].to(output.dtype)
                output[chunk, position] = to_device(vector, output.device)
            return output

        handle = self._network.get_input_embeddings().register_forward_hook(insert)
        try:
            yield
        finally:
            handle.remove()


def _check(chunks: Sequence[Chunk], path: str) -> None:
    if len(chunks) > MAX_CHUNKS:
        raise InvalidRequest(
            [Violation(path, f"takes {len(chunks)} chunks of the text encoder, more than {MAX_CHUNKS}")]
        )
    if any(not abs(token.weight) <= MAX_WEIGHT for chunk in chunks for token in chunk):
        raise InvalidRequest([Violation(path, f"has a weight beyond {MAX_WEIGHT}")])


def emphasised(hidden: torch.Tensor, chunks: Sequence[Chunk]) -> torch.Tensor:
    """Hidden states, (chunks, positions, width), multiplied by the weights of their tokens, then each chunk's by what
    restores its mean: what emphasis is in AUTOMATIC1111's web UI. Chunks without weights are not changed."""
    weights = torch.ones(hidden.shape[:2])
    for row, chunk in zip(weights, chunks, strict=True):
        row[: len(chunk)] = torch.tensor([token.weight for token in chunk])
    if (weights == 1).all():
        return hidden
    before = hidden.float()
    after = before * to_device(weights, before.device)[:, :, None]
    return (after * (before.mean((1, 2), keepdim=True) / after.mean((1, 2), keepdim=True))).to(hidden.dtype)


class ClipTexts:
    """A model's one or two text encoders together."""

    def __init__(self, encoders: Sequence[ClipEncoder], zeros_for_unset: bool = False) -> None:
        """With `zeros_for_unset` the embedding of an unset negative prompt is zeros, not that of an empty text."""
        self._encoders = encoders
        self._zeros_for_unset = zeros_for_unset

    def keys(self, request: Request, read: PromptReader, guided: bool) -> tuple[Prompt, ...]:
        """As the encode_prompt of diffusers' pipelines, which skips no layers for the negative prompt."""
        weighted, text, negative = request.prompt_syntax == "weighted", request.prompt, request.negative_prompt
        conditional = self._prompt("prompt", (text, request.prompt_2 or text), request.clip_skip, read, weighted)
        if not guided:
            return (conditional,)
        if negative is None and self._zeros_for_unset:
            return Prompt((), 0, conditional.length), conditional
        negative = negative or ""
        both = (negative, request.negative_prompt_2 or negative)
        unconditional = self._prompt("negative_prompt", both, 0, read, weighted)
        count = max(len(key.texts[0]) for key in (unconditional, conditional))
        return self._padded(unconditional, count), self._padded(conditional, count)

    def _prompt(self, field: str, texts: Sequence[str], clip_skip: int, read: PromptReader, weighted: bool) -> Prompt:
        """The key of the texts for the first and the second encoder, where there is one.

        :raises InvalidRequest: a prompt is too long, or a weight too great
        """
        pairs = [(encoder, read(text)) for encoder, text in zip(self._encoders, texts, strict=False)]
        found = [(encoder.split(pieces), ()) if weighted else encoder.cut(pieces) for encoder, pieces in pairs]
        for suffix, (chunks, _) in zip(("", "_2"), found, strict=False):
            _check(chunks, f"parameters.{field}{suffix}")
        warnings = dict.fromkeys(warning for _, problems in found for warning in problems)
        prompt = Prompt(tuple(chunks for chunks, _ in found), clip_skip, 0, tuple(warnings))
        return self._padded(prompt, max(map(len, prompt.texts)))

    def _padded(self, prompt: Prompt, count: int) -> Prompt:
        texts = (e.padded(chunks, count) for e, chunks in zip(self._encoders, prompt.texts, strict=True))
        return replace(prompt, texts=tuple(texts), length=count * self._encoders[0].length)

    def encode(self, keys: Sequence[Prompt], like: torch.Tensor) -> list[PromptEmbedding]:
        """The embedding of each of `keys`, of this tensor's device and type, with the last encoder's pooled one."""
        written = [key for key in keys if key.texts]
        skips = [key.clip_skip for key in written]
        by_encoder = [
            encoder.encode([key.texts[index] for key in written], skips) if written else []
            for index, encoder in enumerate(self._encoders)
        ]
        made = zip(*by_encoder, strict=True)
        return [self._embedding(key, next(made), like) if key.texts else self._zeros(key, like) for key in keys]

    def _embedding(self, key: Prompt, outputs: Sequence[Encoded], like: torch.Tensor) -> PromptEmbedding:
        hidden, pooled = torch.cat([hidden for hidden, _ in outputs], dim=-1), outputs[-1][1]
        return PromptEmbedding(hidden.to(like), pooled.to(like) if pooled is not None else None, key.warnings)

    def _zeros(self, key: Prompt, like: torch.Tensor) -> PromptEmbedding:
        width = sum(encoder.width for encoder in self._encoders)
        zeros = like.new_zeros(1, self._encoders[-1].projected_width)
        return PromptEmbedding(like.new_zeros(1, key.length, width), zeros)
