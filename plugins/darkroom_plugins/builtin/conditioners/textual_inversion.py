"""Textual inversion (Gal et al. 2022): learned words, as vectors in place of token embeddings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from darkroom_plugins import hookimpl
from darkroom_plugins.builtin.families.clip import Embedding
from darkroom_plugins.contract import AssetInfo, AssetKind, Assets, Conditioner, Family
from darkroom_plugins.files.safetensors_files import opened
from darkroom_plugins.request import Request
from darkroom_plugins.sample import PromptPiece

darkroom_api_version = 1

WORD = re.compile(r"<([A-Za-z0-9._/-]+)>")
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
PAIR = ("clip_l", "clip_g")  # tensor names for the two text encoders of SDXL
SINGLE = "emb_params"  # tensor name in AUTOMATIC1111's files; in diffusers' it is the word


class TextualInversion(Conditioner):
    """Replaces ``<name>`` in a prompt by the embedding of that name, if the model has it."""

    name = "textual-inversion"
    description = "Learned words in prompts: <name> is the embedding of that name."
    asset_kind: AssetKind = "embedding"  # type: ignore[misc]

    def wants(self, request: Request, parameters: None) -> bool:
        texts = (request.prompt, request.negative_prompt, request.prompt_2, request.negative_prompt_2)
        return any(WORD.search(text) for text in texts if text)

    def describe_asset(self, path: Path) -> AssetInfo:
        return AssetInfo(components=TEXT_ENCODERS[: len(_shapes(path))], weight_bytes=path.stat().st_size)

    def incompatibility(self, path: Path, model: Family) -> str | None:
        theirs = [str(shape[-1]) for shape in _shapes(path)]
        encoders = [model.shapes(part) for part in TEXT_ENCODERS if part in model.meta_components]
        ours = [
            str(shapes[name][1]) for shapes in encoders for name in shapes if name.endswith("token_embedding.weight")
        ]
        if theirs == ours:
            return None
        return f"it was made for text encoders of width {' and '.join(theirs)}, not {' and '.join(ours) or 'for none'}"

    def load_asset(self, path: Path, model: Family) -> Embedding:
        """Its vectors, on the CPU; the encoded prompt is on the device."""
        with opened(path, "pt") as file:
            tensors = [file.get_tensor(name) for name in _names(file)]
        if not all(tensor.isfinite().all() for tensor in tensors):
            raise ValueError("its vectors have values that are not finite")
        return Embedding(tuple(tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors))

    def read_prompt(
        self, pieces: tuple[PromptPiece, ...], request: Request, assets: Assets, parameters: None
    ) -> tuple[PromptPiece, ...]:
        names = frozenset(assets.names("embedding"))
        return tuple(part for piece in pieces for part in _read(piece, names, assets))


def _read(piece: PromptPiece, names: frozenset[str], assets: Assets) -> Iterator[PromptPiece]:
    """The piece split at its embeddings."""
    end, new_chunk = 0, piece.new_chunk
    for word in WORD.finditer(piece.text):
        if word[1] in names:
            yield replace(piece, text=piece.text[end : word.start()], new_chunk=new_chunk)
            yield replace(piece, text=word[0], embedding=assets.get("embedding", word[1]), new_chunk=False)
            end, new_chunk = word.end(), False
    yield replace(piece, text=piece.text[end:], new_chunk=new_chunk)


def _shapes(path: Path) -> list[Sequence[int]]:
    """For each text encoder the shape of its tensor: (n, width), or (width,) for one vector."""
    with opened(path) as file:
        shapes = [file.get_slice(name).get_shape() for name in _names(file)]
    if any(len(shape) not in (1, 2) or 0 in shape for shape in shapes):
        raise ValueError(f"its tensors are of shape {shapes}, not vectors")
    return shapes


def _names(file: Any) -> Sequence[str]:
    """For each text encoder the name of its tensor."""
    names = list(file.keys())
    for known in (PAIR, (SINGLE,)):
        if set(known) <= set(names):
            return known
    if len(names) != 1:
        raise ValueError(f"it has {len(names)} tensors, of which none is named as an embedding's")
    return names


@hookimpl
def darkroom_conditioners() -> Sequence[Conditioner]:
    return [TextualInversion()]
