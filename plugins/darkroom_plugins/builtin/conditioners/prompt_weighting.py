"""Prompt weighting in the syntax of AUTOMATIC1111's web UI.

From its wiki, "Attention/emphasis" and "Infinite prompt length": ``(word)`` has weight 1.1, ``[word]`` 1 / 1.1,
``(word:1.3)`` 1.3; nested weights multiply. A backslash escapes a bracket. BREAK begins a new text-encoder chunk. As
there, a bracket without its closing one reaches to the end, and one without its opening one is a character. Prompt
editing (``[from:to:when]``) is not supported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter

from darkroom_plugins import hookimpl
from darkroom_plugins.contract import Assets, Conditioner
from darkroom_plugins.request import Request
from darkroom_plugins.sample import PromptPiece

darkroom_api_version = 1

TOKEN = re.compile(
    r"""
      \\ (?P<escaped> [()\[\]\\]? )  # the backslash is always dropped
    | (?P<opening> [(\[] )
    | (?P<closing> (?: : \s* (?P<factor> [+-]? (?: \d+ (?:\.\d*)? | \.\d+ ) ) \s* )? \) | \] )
    | [^\\()\[\]:]+ | :
    """,
    re.VERBOSE,
)
BREAK = re.compile(r"\bBREAK\b")
FACTORS = {"(": 1.1, "[": 1 / 1.1}
OPENING = {")": "(", "]": "["}


class PromptWeighting(Conditioner):
    """Parses weighted prompts; `clip.emphasised` applies the weights."""

    name = "prompt-weighting"
    description = "Weights in prompts, as (word:1.3), and prompts of any length."

    def wants(self, request: Request, parameters: None) -> bool:
        return request.prompt_syntax == "weighted"

    def read_prompt(
        self, pieces: tuple[PromptPiece, ...], request: Request, assets: Assets, parameters: None
    ) -> tuple[PromptPiece, ...]:
        return tuple(part for piece in pieces for part in _read(piece))


def _read(piece: PromptPiece) -> Iterator[PromptPiece]:
    if piece.embedding is not None:
        yield piece
        return
    new_chunk = piece.new_chunk
    for text, weight in parse(piece.text):
        for part in BREAK.split(text):
            yield replace(piece, text=part, weight=piece.weight * weight, new_chunk=new_chunk)
            new_chunk = True
        new_chunk = False


def parse(prompt: str) -> list[tuple[str, float]]:
    """(text, weight) for each run of equal weight in a prompt; at least one."""
    parts = [(text, weight) for text, weight in _weighted(prompt) if text]
    runs = groupby(parts, key=itemgetter(1))
    return [("".join(text for text, _ in run), weight) for weight, run in runs] or [("", 1.0)]


def _weighted(prompt: str) -> Iterator[tuple[str, float]]:
    """(text, weight) for each token of text; the weight is the product of the factors of all enclosing brackets."""
    tokens = list(TOKEN.finditer(prompt))
    factors = _factors(tokens)
    weights = {bracket: [1.0] for bracket in FACTORS}  # by kind: the product at each open bracket
    for token in tokens:
        if bracket := token["opening"]:
            weights[bracket].append(weights[bracket][-1] * factors[token.start()])
        elif (closing := token["closing"]) and len(weights[OPENING[closing[-1]]]) > 1:
            weights[OPENING[closing[-1]]].pop()
        else:
            text = token[0] if token["escaped"] is None else token["escaped"]
            yield text, weights["("][-1] * weights["["][-1]


def _factors(tokens: Sequence[re.Match[str]]) -> dict[int, float]:
    """The factor of each opening bracket, by position; its closing bracket may set it."""
    factors = {}
    opened: dict[str, list[int]] = {bracket: [] for bracket in FACTORS}
    for token in tokens:
        if bracket := token["opening"]:
            opened[bracket].append(token.start())
            factors[token.start()] = FACTORS[bracket]
        elif (closing := token["closing"]) and opened[OPENING[closing[-1]]]:
            start = opened[OPENING[closing[-1]]].pop()
            if token["factor"]:
                factors[start] = float(token["factor"])
    return factors


@hookimpl
def darkroom_conditioners() -> Sequence[Conditioner]:
    return [PromptWeighting()]
