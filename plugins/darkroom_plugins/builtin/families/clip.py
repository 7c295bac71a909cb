"""CLIP text encoding for Stable Diffusion and SDXL.

Prompts are tokenised on the planner's thread, as tokenizers are not thread-safe, and encoded on the engine's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

from darkroom_plugins.contract import Family, PromptReader
from darkroom_plugins.deferred import torch
from darkroom_plugins.errors import InvalidRequest, Violation
from darkroom_plugins.request import Request
from darkroom_plugins.sample import PromptEmbedding, PromptPiece
from darkroom_plugins.tensors import to_device

MAX_CHUNKS = 16  # of one prompt; they are encoded in one forward
MAX_WEIGHT = 100.0  # of a token; more soon overflows float16
WRAP = 20  # tokens: up to so many from a comma on move to the next chunk, AUTOMATIC1111's comma_padding_backtrack


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """Token embeddings of a learned word (textual inversion, Gal et al. 2022)."""

    vectors: tuple[torch.Tensor, ...]  # for each text encoder: (n, width)


class Token(NamedTuple):
    """One position of the text encoder's input."""

    id: int
    weight: float = 1.0
    embedding: Embedding | None = None  # replaces the token embedding of the id
    vector: int = 0  # index into its vectors


Encoded: TypeAlias = (
    "tuple[torch.Tensor, torch.Tensor | None]"  # hidden states (1, tokens, width); projected pooled output (1, width)
)
Chunk: TypeAlias = tuple[Token, ...]  # one input of an encoder: BOS, tokens, EOS; padded on encoding


@dataclass(frozen=True, slots=True)
class Prompt:
    """Key of a prompt embedding: all that it depends on."""

    texts: tuple[tuple[Chunk, ...], ...]  # one for each encoder, equally long; empty: zeros
    clip_skip: int
    length: int  # tokens of the embedding
    warnings: tuple[str, ...] = ()


class ClipEncoder:
    """A text encoder with its tokenizer; `index` 0 or 1 says which of its model."""

    def __init__(
        self, tokenizer: Any, model: Family, component: str, index: int = 0, penultimate: bool = False
    ) -> None:
        """`penultimate`: hidden states are the last but one layer's, without the final norm, as in SDXL."""
        config: Any = model.meta_components[component].config
        self.length: int = min(tokenizer.model_max_length, config.max_position_embeddings)  # of a chunk
        self.width: int = config.hidden_size
        self.projected_width: int = config.projection_dim
        self.tokenizer, self._model, self._component = tokenizer, model, component
        self._index, self._penultimate = index, penultimate
        self._begin, self._end, self._pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        self._comma = tokenizer.get_vocab().get(",</w>")

    @property
    def capacity(self) -> int:
        """Tokens of a prompt in a chunk, without BOS and EOS."""
        return self.length - 2

    @property
    def _network(self) -> Any:
        return self._model.components[self._component]

    def truncated(self, pieces: Sequence[PromptPiece]) -> tuple[tuple[Chunk, ...], tuple[str, ...]]:
        """One chunk, as in diffusers' pipelines; a warning names what was cut off."""
        read = [(piece, self._tokens(piece)) for piece in pieces]
        tokens = [token for _, part in read for token in part]
        chunks = (self._with_bos_eos(tokens[: self.capacity]),)
        if len(tokens) <= self.capacity:
            return chunks, ()
        problem = f"of a prompt of {len(tokens)} this was cut off: {self._cut_off(read)[:200]!r}"
        return chunks, (f"the text encoder takes {self.capacity} tokens; {problem}",)

    def _cut_off(self, read: Sequence[tuple[PromptPiece, list[Token]]]) -> str:
        """The text beyond the capacity; embeddings by their names, without the rest of a character that was cut."""
        room, texts = self.capacity, []
        for piece, tokens in read:
            if cut := tokens[room:]:
                texts.append(piece.text if piece.embedding else self.tokenizer.decode([token.id for token in cut]))
            room = max(0, room - len(tokens))
        return " ".join(texts).lstrip("\ufffd")

    def chunked(self, pieces: Sequence[PromptPiece]) -> tuple[Chunk, ...]:
        """As many chunks as needed, as in AUTOMATIC1111's web UI: what follows a full chunk's last comma, if it is
        short, moves to the next one. An embedding is not split if it fits in one."""
        chunks: list[list[Token]] = [[]]
        for piece in pieces:
            if piece.new_chunk:
                chunks.append([])
            tokens = self._tokens(piece)
            for run in [tokens] if piece.embedding else [[token] for token in tokens]:
                self._append(run, chunks)
        if len(chunks) > 1 and not chunks[-1]:
            chunks.pop()
        return tuple(self._with_bos_eos(chunk) for chunk in chunks)

    def _append(self, run: list[Token], chunks: list[list[Token]]) -> None:
        """Add tokens that belong together to the last chunk, or to new ones."""
        if len(chunks[-1]) == self.capacity:
            chunks.append([] if self._is_comma(run[0]) else self._taken_after_comma(chunks[-1]))
        if chunks[-1] and len(chunks[-1]) + len(run) > self.capacity:
            chunks.append([])
        chunks[-1] += run[: self.capacity]
        chunks += [run[start : start + self.capacity] for start in range(self.capacity, len(run), self.capacity)]

    def _taken_after_comma(self, chunk: list[Token]) -> list[Token]:
        """Removes and returns what follows the last comma among the last WRAP tokens; nothing without one."""
        for start in range(len(chunk), max(0, len(chunk) - WRAP), -1):
            if self._is_comma(chunk[start - 1]):
                taken, chunk[start:] = chunk[start:], []
                return taken
        return []

    def _is_comma(self, token: Token) -> bool:
        return token.id == self._comma and token.embedding is None

    def padded(self, chunks: tuple[Chunk, ...], count: int) -> tuple[Chunk, ...]:
        """The chunks, with empty ones up to `count`."""
        return chunks + (self._with_bos_eos([]),) * (count - len(chunks))

    def _with_bos_eos(self, tokens: Sequence[Token]) -> Chunk:
        return Token(self._begin), *tokens, Token(self._end)

    def _tokens(self, piece: PromptPiece) -> list[Token]:
        embedding: Embedding | None = piece.embedding
        if embedding is not None:
            # The id matters only where the EOS is located, in old models as the greatest id; 0 is never that.
            return [Token(0, piece.weight, embedding, n) for n in range(len(embedding.vectors[self._index]))]
        ids = self.tokenizer(piece.text, add_special_tokens=False, verbose=False).input_ids
        return [Token(each, piece.weight) for each in ids]

    def encode(self, texts: Sequence[tuple[Chunk, ...]], skips: Sequence[int]) -> list[Encoded]:
        """For each text: the hidden states of all its chunks, (1, tokens, width), of the layer for its clip skip,
        and the projected pooled output of its first chunk, (1, width), if the network has a projection."""
        chunks = [chunk for text in texts for chunk in text]
        paddings = [self.length - len(chunk) for chunk in chunks]
        ids = [[*(token.id for token in chunk), *[self._pad] * n] for chunk, n in zip(chunks, paddings, strict=True)]
        mask = [[1] * len(chunk) + [0] * n for chunk, n in zip(chunks, paddings, strict=True)]
        use_mask = getattr(self._network.config, "use_attention_mask", False)
        with self._embeddings_inserted(chunks):
            output = self._network(
                to_device(torch.tensor(ids), self._model.device),
                attention_mask=to_device(torch.tensor(mask), self._model.device) if use_mask else None,
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
        # Before transformers 5 the final norm was in `text_model`.
        norm = getattr(self._network, "text_model", self._network).final_layer_norm
        return norm(output.hidden_states[-(clip_skip + 1)])  # type: ignore[no-any-return]

    @contextmanager
    def _embeddings_inserted(self, chunks: Sequence[Chunk]) -> Iterator[None]:
        """Context manager: a forward hook on the token embedding layer puts in textual-inversion vectors. The layer's
        weights do not change."""
        places = [(c, p, token) for c, chunk in enumerate(chunks) for p, token in enumerate(chunk) if token.embedding]

        def insert(_layer: Any, _ids: Any, output: torch.Tensor) -> torch.Tensor:
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
    """Emphasis as in AUTOMATIC1111's web UI: hidden states, (chunks, positions, width), times their tokens' weights,
    then each chunk rescaled to its mean before. Chunks without weights are unchanged."""
    weights = torch.ones(hidden.shape[:2])
    for row, chunk in zip(weights, chunks, strict=True):
        row[: len(chunk)] = torch.tensor([token.weight for token in chunk])
    if (weights == 1).all():
        return hidden
    before = hidden.float()
    after = before * to_device(weights, before.device)[:, :, None]
    return (after * (before.mean((1, 2), keepdim=True) / after.mean((1, 2), keepdim=True))).to(hidden.dtype)


class TextEncoders:
    """The one or two text encoders of a model."""

    def __init__(self, encoders: Sequence[ClipEncoder], zeros_for_unset: bool = False) -> None:
        """`zeros_for_unset`: an unset negative prompt is zeros, not the embedding of an empty text."""
        self.encoders = encoders
        self._zeros_for_unset = zeros_for_unset

    def keys(self, request: Request, read: PromptReader, guided: bool) -> tuple[Prompt, ...]:
        """The keys for `encode_prompt` of diffusers' pipelines, which has no clip skip for the negative prompt."""
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
        """The key of a prompt, given its text for each encoder.

        :raises InvalidRequest: a prompt is too long, or a weight too great
        """
        pairs = [(encoder, read(text)) for encoder, text in zip(self.encoders, texts, strict=False)]
        found = [(encoder.chunked(pieces), ()) if weighted else encoder.truncated(pieces) for encoder, pieces in pairs]
        for suffix, (chunks, _) in zip(("", "_2"), found, strict=False):
            _check(chunks, f"parameters.{field}{suffix}")
        warnings = dict.fromkeys(warning for _, problems in found for warning in problems)
        prompt = Prompt(tuple(chunks for chunks, _ in found), clip_skip, 0, tuple(warnings))
        return self._padded(prompt, max(map(len, prompt.texts)))

    def _padded(self, prompt: Prompt, count: int) -> Prompt:
        texts = (e.padded(chunks, count) for e, chunks in zip(self.encoders, prompt.texts, strict=True))
        return replace(prompt, texts=tuple(texts), length=count * self.encoders[0].length)

    def encode(self, keys: Sequence[Prompt], like: torch.Tensor) -> list[PromptEmbedding]:
        """The embeddings of `keys`, on the device and in the dtype of `like`; pooled is the last encoder's."""
        nonzero = [key for key in keys if key.texts]
        skips = [key.clip_skip for key in nonzero]
        by_encoder = [
            encoder.encode([key.texts[index] for key in nonzero], skips) if nonzero else []
            for index, encoder in enumerate(self.encoders)
        ]
        outputs = zip(*by_encoder, strict=True)
        return [self._embedding(key, next(outputs), like) if key.texts else self._zeros(key, like) for key in keys]

    def _embedding(self, key: Prompt, outputs: Sequence[Encoded], like: torch.Tensor) -> PromptEmbedding:
        hidden, pooled = torch.cat([hidden for hidden, _ in outputs], dim=-1), outputs[-1][1]
        return PromptEmbedding(hidden.to(like), pooled.to(like) if pooled is not None else None, key.warnings)

    def _zeros(self, key: Prompt, like: torch.Tensor) -> PromptEmbedding:
        width = sum(encoder.width for encoder in self.encoders)
        zeros = like.new_zeros(1, self.encoders[-1].projected_width)
        return PromptEmbedding(like.new_zeros(1, key.length, width), zeros)
